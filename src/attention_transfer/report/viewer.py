"""What the page's viewer shows: probe images, and each run's maps of them epoch by epoch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.comparison import Group
from attention_transfer.report.records import Attention
from attention_transfer.report.relative_maps import LARGEST, Maps, cosines, shrunk
from attention_transfer.report.sheets import colour_table, map_sheet, photograph

__all__ = ["probabilities", "viewer"]

MOST_BYTES = 2_000_000
"""Of all maps, before they are compressed and written as text."""

FEWEST, SMALLEST = 4, 8
"""Images, and cells of a map's side, that are kept however many runs there are."""


def viewer(groups: Sequence[Group], class_names: Sequence[str]) -> dict[str, Any] | None:
    """The viewer's data, for JSON; None if no run kept maps.

    Images are those of the first run with maps; runs that kept others are left out.
    """
    shown = [(group, group.first.attention) for group in groups]
    with_maps = [(group, kept) for group, kept in shown if kept is not None and kept.epochs]
    if not with_maps:
        return None
    first = with_maps[0][1].probes
    same = [
        (group, kept)
        for group, kept in with_maps
        if np.array_equal(kept.probes["images"], first["images"])
    ]
    images, side = _affordable([kept for _, kept in same], len(first["images"]))
    targets = _targets([kept for _, kept in same])
    taught_first = sorted(same, key=lambda shown: not shown[1].teacher)
    return {
        "colours": colour_table(),
        "classes": list(class_names),
        "images": [
            {"data": photograph(pixels), "label": int(label), "name": str(name)}
            for pixels, label, name in zip(
                first["images"][:images], first["labels"], first["names"], strict=False
            )
        ],
        "runs": [_run(group.label, kept, targets, images, side) for group, kept in taught_first],
    }


def _affordable(kept: Sequence[Attention], images: int) -> tuple[int, int]:
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


def _targets(kept: Sequence[Attention]) -> dict[str, _Target]:
    """By the student's place; a student alone is compared with the teacher that another run had."""
    found: dict[str, _Target] = {}
    for run in kept:
        for pair, maps in zip(run.points, run.teacher, strict=False):
            student, _, teacher = pair.partition(":")
            found.setdefault(student, _Target(teacher, maps))
    return found


def _own(kept: Attention, targets: dict[str, _Target], number: int) -> tuple[str, _Target | None]:
    """A place of a student, and its own teacher's maps or else those that another run had."""
    student, _, teacher = kept.points[number].partition(":")
    if kept.teacher:
        return student, _Target(teacher, kept.teacher[number])
    return student, targets.get(student)


def _run(
    label: str, kept: Attention, targets: dict[str, _Target], images: int, side: int
) -> dict[str, Any]:
    return {
        "label": label,
        "epochs": kept.epochs,
        "answers": [_answers(kept, epoch, images) for epoch in kept.epochs],
        "points": [
            _point(
                *_own(kept, targets, number),
                [shrunk(kept.student[epoch][number][:images], side) for epoch in kept.epochs],
                side,
            )
            for number in range(len(kept.points))
        ],
    }


def _point(student: str, target: _Target | None, looks: list[Maps], side: int) -> dict[str, Any]:
    """One place of the student through the epochs, and the teacher's that it is compared with."""
    images = len(looks[-1])
    teacher = None if target is None else shrunk(target.maps[:images], side)
    shared = [maps.max(axis=(1, 2)) for maps in (looks[-1], teacher) if maps is not None]
    most = np.maximum.reduce([*shared, np.full(images, 1e-12)])
    return {
        "student": student,
        "teacher": None if target is None else target.name,
        "sheet": map_sheet(looks, most),
        "teacher_sheet": None if teacher is None else map_sheet([teacher], most),
        "agreement": None
        if teacher is None
        else [cosines(look, teacher).round(3).tolist() for look in looks],
    }


def _answers(kept: Attention, epoch: int, images: int) -> list[list[float]] | None:
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
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
