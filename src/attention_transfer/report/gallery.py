"""Test images worth a look: where teacher and student disagree, and whose answers changed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attention_transfer.drawing.scale import Maps, cosines, shrunk
from attention_transfer.drawing.sprites import coloured, photograph
from attention_transfer.report.comparison import Changes
from attention_transfer.report.groups import Group
from attention_transfer.report.viewer import probabilities
from attention_transfer.runs import RunAttention

__all__ = ["disagreements", "pictures_of_changes"]

SHOWN = 6
"""Images of each kind."""


def disagreements(groups: Sequence[Group], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each taught group, the test images whose top-level maps are least alike."""
    found = []
    for group in groups:
        kept = group.attention
        if kept is None or not kept.of_examples("teacher"):
            continue
        student, teacher = (_top(kept, who, kept.top) for who in ("student", "teacher"))
        assert student is not None
        assert teacher is not None
        alike = cosines(student, teacher)
        images = [
            {
                **_image(kept, int(place), names),
                "answers": [_answer("student", kept, int(place), names)],
                "cosine": f"{alike[place]:.2f}",
                "maps": _maps([("teacher", teacher), ("student", student)], int(place)),
            }
            for place in np.argsort(alike, kind="stable")[:SHOWN]
        ]
        point = kept.points[kept.place(kept.top) or 0]
        median = f"{np.median(alike):.2f}"
        found.append(
            {"label": group.shown_label, "point": point, "median": median, "images": images}
        )
    return found


def pictures_of_changes(changes: Changes, names: Sequence[str]) -> list[dict[str, Any]]:
    """Images whose answer changed, mended ones first, with the maps before and after."""
    after, before = changes.taught.attention, changes.alone.attention
    if after is None:
        return []
    mended = [place for place, is_mended in changes.examples if is_mended]
    broken = [place for place, is_mended in changes.examples if not is_mended]
    return [
        {
            **_image(after, place, names),
            "mended": place in mended,
            "answers": [
                _answer("alone", before if _same(before, after, place) else None, place, names),
                _answer("taught", after, place, names),
            ],
            "cosine": None,
            "maps": _maps(list(_before_and_after(before, after, place)), place),
        }
        for place in [*mended[:SHOWN], *broken[:SHOWN]]
    ]


def _before_and_after(
    before: RunAttention | None, after: RunAttention, place: int
) -> Iterator[tuple[str, Maps]]:
    """The maps at the taught student's top level: alone, taught, and the teacher's."""
    if before is not None and before.function == after.function and _same(before, after, place):
        alone = _top(before, "student", after.top)
        if alone is not None:
            yield "alone", alone
    for name, network in (("taught", "student"), ("teacher", "teacher")):
        maps = _top(after, network, after.top)
        if maps is not None:
            yield name, maps


def _top(kept: RunAttention, network: str, student: str) -> Maps | None:
    """A network's maps of the test images at a place of the student."""
    number, maps = kept.place(student), kept.of_examples(network)
    return maps[number] if maps and number is not None else None


def _same(before: RunAttention | None, after: RunAttention, place: int) -> bool:
    """Whether both kept the same image at a place."""
    if before is None:
        return False
    indices = [kept.examples.get("indices", np.zeros(0)) for kept in (before, after)]
    return bool(place < len(indices[0]) and indices[0][place] == indices[1][place])


def _maps(maps: Sequence[tuple[str, Maps]], place: int) -> list[dict[str, str]]:
    """One image's maps on one scale."""
    chosen = [(name, shrunk(found[place : place + 1])[0]) for name, found in maps]
    most = max(float(found.max()) for _, found in chosen)
    return [{"name": name, "data": coloured(found, most)} for name, found in chosen]


def _image(kept: RunAttention, place: int, names: Sequence[str]) -> dict[str, Any]:
    examples = kept.examples
    return {
        "data": photograph(examples["images"][place]),
        "name": str(examples["names"][place]),
        "truth": names[int(examples["labels"][place])],
    }


def _answer(
    who: str, kept: RunAttention | None, place: int, names: Sequence[str]
) -> dict[str, Any]:
    """What a student said, how sure it was, and whether that is right."""
    logits = None if kept is None else kept.examples.get("student/logits")
    if kept is None or logits is None:
        return {"who": who, "said": "?", "sure": "", "right": False}
    chances = probabilities(logits[place : place + 1])[0]
    best = int(chances.argmax())
    right = best == int(kept.examples["labels"][place])
    return {
        "who": who,
        "said": names[best],
        "sure": f"({100 * chances[best]:.0f}\N{NO-BREAK SPACE}%)",
        "right": right,
    }
