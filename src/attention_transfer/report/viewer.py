"""What the page's viewer shows: probe images, and each run's maps of them epoch by epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.comparison import Group
from attention_transfer.report.records import Attention
from attention_transfer.report.relative_maps import LARGEST, cosines, shrunk
from attention_transfer.report.sheets import Sheet, colour_table, map_sheet, photograph

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
    return {
        "colours": colour_table(),
        "classes": list(class_names),
        "images": [
            {"data": photograph(pixels), "label": int(label), "name": str(name)}
            for pixels, label, name in zip(
                first["images"][:images], first["labels"], first["names"], strict=False
            )
        ],
        "runs": [_run(group.label, kept, images, side) for group, kept in same],
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


def _run(label: str, kept: Attention, images: int, side: int) -> dict[str, Any]:
    return {
        "label": label,
        "epochs": kept.epochs,
        "answers": [_answers(kept, epoch, images) for epoch in kept.epochs],
        "points": [
            _point(kept, number, name, images, side) for number, name in enumerate(kept.points)
        ],
    }


def _point(kept: Attention, number: int, name: str, images: int, side: int) -> dict[str, Any]:
    """One place of the student, and the teacher's that it is compared with."""
    looks = [shrunk(kept.student[epoch][number][:images], side) for epoch in kept.epochs]
    target = shrunk(kept.teacher[number][:images], side) if kept.teacher else None
    shared = [look.max(axis=(1, 2)) for look in (looks[-1], target) if look is not None]
    most = np.maximum.reduce([*shared, np.full(len(looks[-1]), 1e-12)])
    student, _, teacher = name.partition(":")
    sheet: Sheet = map_sheet(looks, most)
    return {
        "name": name,
        "student": student,
        "teacher": teacher or None,
        "sheet": sheet,
        "teacher_sheet": None if target is None else map_sheet([target], most),
        "agreement": None
        if target is None
        else [cosines(look, target).round(3).tolist() for look in looks],
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
