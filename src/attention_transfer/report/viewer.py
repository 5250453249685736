"""What the page's viewer shows: probe images, and each run's maps of them epoch by epoch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attention_transfer.drawing.scale import LARGEST, Maps, cosines, shrunk
from attention_transfer.drawing.sprites import colour_table, map_sheet, photograph
from attention_transfer.report.groups import Group
from attention_transfer.runs import RunAttention

__all__ = ["probabilities", "viewer"]

MOST_BYTES = 2_000_000
"""Of all maps, before they are compressed and written as text."""

FEWEST, SMALLEST = 4, 8
"""Images, and cells of a map's side, that are kept however many runs there are."""


def viewer(groups: Sequence[Group], class_names: Sequence[str]) -> dict[str, Any] | None:
    """The viewer's data, for JSON; None if no run kept maps.

    Images are those of the first taught run with maps; a run that kept others is left out.
    """
    shown = [(group, kept) for group in groups if (kept := group.attention) is not None]
    if not shown:
        return None
    shown.sort(key=lambda found: not found[1].teacher)
    first = shown[0][1].probes
    same = [
        (group, kept)
        for group, kept in shown
        if np.array_equal(kept.probes["images"], first["images"])
    ]
    images, side = _affordable([kept for _, kept in same], len(first["images"]))
    targets = _targets([kept for _, kept in same])
    return {
        "colours": colour_table(),
        "classes": list(class_names),
        "skipped": [
            group.shown_label for group, _ in shown if group not in [one for one, _ in same]
        ],
        "images": [
            {"data": photograph(pixels), "label": int(label), "name": str(name)}
            for pixels, label, name in zip(
                first["images"][:images], first["labels"], first["names"], strict=False
            )
        ],
        "runs": [_run(group.shown_label, kept, targets, images, side) for group, kept in same],
    }


def _affordable(kept: Sequence[RunAttention], images: int) -> tuple[int, int]:
    """How many images, and the largest side of their maps, fit into the page."""
    for side in (LARGEST, LARGEST // 2, SMALLEST):
        each = sum(
            (len(run.epochs) + bool(run.teacher)) * _cells(maps, side)
            for run in kept
            for maps in run.student[run.epochs[-1]]
        )
        affordable = MOST_BYTES // max(1, each)
        if affordable >= min(images, 16):
            break
    return min(images, max(FEWEST, affordable)), side


def _cells(maps: NDArray[np.float32], side: int) -> int:
    return int(min(maps.shape[1], side) * min(maps.shape[2], side))


class _Target(NamedTuple):
    """The teacher's maps that a place of the student is compared with."""

    name: str
    maps: Maps


_Targets = dict[tuple[str, tuple[str, float]], _Target]
"""By the student's place, and the function F of the maps."""


def _targets(kept: Sequence[RunAttention]) -> _Targets:
    """A student alone is compared with the teacher that another run had."""
    found: _Targets = {}
    for run in kept:
        for pair, maps in zip(run.points, run.teacher, strict=False):
            student, _, teacher = pair.partition(":")
            found.setdefault((student, run.function), _Target(teacher, maps))
    return found


def _run(
    label: str, kept: RunAttention, targets: _Targets, images: int, side: int
) -> dict[str, Any]:
    return {
        "label": label,
        "epochs": kept.epochs,
        "answers": [_answers(kept, epoch, images) for epoch in kept.epochs],
        "points": [
            _point(kept, number, targets, images, side) for number in range(len(kept.points))
        ],
    }


def _point(
    kept: RunAttention, number: int, targets: _Targets, images: int, side: int
) -> dict[str, Any]:
    """One place of the student through the epochs, and the teacher's that it is compared with."""
    student, _, own = kept.points[number].partition(":")
    target = targets.get((student, kept.function))
    if kept.teacher:
        target = _Target(own, kept.teacher[number])
    looks = [kept.student[epoch][number][:images] for epoch in kept.epochs]
    small = [shrunk(look, side) for look in looks]
    teacher = None if target is None else shrunk(target.maps[:images], side)
    shared = [maps.max(axis=(1, 2)) for maps in (small[-1], teacher) if maps is not None]
    most = np.maximum.reduce([*shared, np.full(len(small[-1]), 1e-12)])
    return {
        "student": student,
        "teacher": None if target is None else target.name,
        "sheet": map_sheet(small, most),
        "teacher_sheet": None if teacher is None else map_sheet([teacher], most),
        "agreement": None
        if target is None
        else [cosines(look, target.maps[:images]).round(3).tolist() for look in looks],
    }


def _answers(kept: RunAttention, epoch: int, images: int) -> list[list[float]] | None:
    """The class that the student finds most probable for each image, and its probability."""
    logits = kept.answers.get(epoch)
    if logits is None:
        return None
    found = probabilities(logits[:images])
    best = found.argmax(axis=1)
    return [
        [int(label), round(float(row[label]), 3)] for label, row in zip(best, found, strict=True)
    ]


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """softmax of logits (N, classes).

    >>> probabilities(np.zeros((1, 2))).tolist()
    [[0.5, 0.5]]
    """
    finite = np.nan_to_num(logits.astype(np.float64), posinf=0, neginf=0)
    powers = np.exp(finite - finite.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
