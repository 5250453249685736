"""Test images worth a look: where teacher and student disagree, and whose answers changed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.comparison import Changes, Group
from attention_transfer.report.records import Attention
from attention_transfer.report.relative_maps import cosines, shrunk
from attention_transfer.report.sheets import coloured, photograph
from attention_transfer.report.viewer import probabilities

__all__ = ["disagreements", "pictures_of_changes"]

SHOWN = 6
"""Images of each kind."""


def disagreements(groups: Sequence[Group], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each taught group, the test images whose top-level maps are least alike."""
    found = []
    for group in groups:
        kept = group.first.attention
        if kept is None or not kept.of_examples("teacher"):
            continue
        student, teacher = (shrunk(kept.of_examples(who)[-1]) for who in ("student", "teacher"))
        alike = cosines(student, teacher)
        worst = np.argsort(alike, kind="stable")[:SHOWN]
        found.append(
            {
                "label": group.label,
                "point": kept.points[-1],
                "median": f"{np.median(alike):.2f}",
                "images": [
                    {
                        **_image(kept, int(place), names),
                        "cosine": f"{alike[place]:.2f}",
                        "maps": _maps({"teacher": teacher, "student": student}, int(place)),
                    }
                    for place in worst
                ],
            }
        )
    return found


def pictures_of_changes(changes: Changes, names: Sequence[str]) -> list[dict[str, Any]]:
    """Images whose answer changed, mended ones first, with the maps before and after."""
    after, before = changes.taught.first.attention, changes.alone.first.attention
    if after is None:
        return []
    mended = [place for place, is_mended in changes.examples if is_mended]
    broken = [place for place, is_mended in changes.examples if not is_mended]
    return [
        {
            **_image(after, place, names),
            "mended": place in mended,
            "before": _answer_of(before if _same(before, after, place) else None, place, names),
            "maps": _maps(dict(_levels(before, after, place)), place),
        }
        for place in [*mended[:SHOWN], *broken[:SHOWN]]
    ]


def _levels(
    before: Attention | None, after: Attention, place: int
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The top-level maps of the student alone, the student taught, and the teacher."""
    if before is not None and before.of_examples("student") and _same(before, after, place):
        yield "alone", shrunk(before.of_examples("student")[-1])
    yield "taught", shrunk(after.of_examples("student")[-1])
    if after.of_examples("teacher"):
        yield "teacher", shrunk(after.of_examples("teacher")[-1])


def _same(before: Attention | None, after: Attention, place: int) -> bool:
    """Whether both kept the same image at a place."""
    if before is None:
        return False
    indices = [kept.examples.get("indices", np.zeros(0)) for kept in (before, after)]
    return bool(place < len(indices[0]) and indices[0][place] == indices[1][place])


def _maps(maps: dict[str, NDArray[np.float64]], place: int) -> list[dict[str, str]]:
    """One image's maps on one scale."""
    chosen = {name: found[place] for name, found in maps.items()}
    most = max(float(found.max()) for found in chosen.values())
    return [{"name": name, "data": coloured(found, most)} for name, found in chosen.items()]


def _image(kept: Attention, place: int, names: Sequence[str]) -> dict[str, Any]:
    examples = kept.examples
    return {
        "data": photograph(examples["images"][place]),
        "name": str(examples["names"][place]),
        "truth": names[int(examples["labels"][place])],
        "answer": _answer_of(kept, place, names),
    }


def _answer_of(kept: Attention | None, place: int, names: Sequence[str]) -> str:
    """What the student said, and how sure it was."""
    logits = None if kept is None else kept.examples.get("student/logits")
    if logits is None or place >= len(logits):
        return "?"
    chances = probabilities(logits[place : place + 1])[0]
    return f"{names[int(chances.argmax())]} ({chances.max():.0%})"
