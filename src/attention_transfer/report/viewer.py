"""Data of the page's viewer: validation images followed through training, and their maps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attention_transfer.drawing.scale import (
    LARGEST_SIDE,
    Maps,
    colour_table,
    common_limits,
    cosine_similarity,
    downsample,
)
from attention_transfer.drawing.sprites import encode_image, map_sprite
from attention_transfer.report.groups import Group, find_baseline
from attention_transfer.runs import RunAttention

__all__ = ["class_text", "softmax", "viewer_data"]

MOST_BYTES = 2_000_000
"""Of all maps together, before they are compressed."""

FEWEST_IMAGES, SMALLEST_SIDE = 4, 8
"""Images, and cells along a map's side, that are kept whatever the number of runs."""

ENOUGH_IMAGES = 16
"""Maps are made coarser until so many images fit."""


class _View(NamedTuple):
    """How much of each run fits into the page."""

    images: int
    side: int
    """Cells along the longer side of a map."""


def viewer_data(groups: Sequence[Group], class_names: Sequence[str]) -> dict[str, Any] | None:
    """Return the viewer's data for JSON, or None if no run saved attention maps.

    The images are those of the first distilled run with maps; runs that followed other images are
    listed as skipped.
    """
    with_maps = [
        (group, attention) for group in groups if (attention := group.attention) is not None
    ]
    if not with_maps:
        return None
    with_maps.sort(key=lambda item: not item[1].teacher_maps)
    probes = with_maps[0][1].probes
    shown, skipped = [], []
    for group, attention in with_maps:
        if np.array_equal(attention.probes["images"], probes["images"]):
            shown.append((group, attention))
        else:
            skipped.append(group.representative_label)
    view = _fit_into_page([attention for _, attention in shown], len(probes["images"]))
    targets = _teacher_maps([attention for _, attention in shown])
    classes, labels = _classes_and_labels(probes["labels"], class_names)
    return {
        "colours": colour_table(),
        "classes": classes,
        "skipped": skipped,
        "images": [
            {"data": encode_image(pixels), "label": int(label), "name": str(name)}
            for pixels, label, name in zip(
                probes["images"][: view.images], labels, probes["names"], strict=False
            )
        ],
        "runs": [
            {
                **_run(group.representative_label, attention, targets, view),
                "alone": _index_of(find_baseline(group, groups), [one for one, _ in shown]),
            }
            for group, attention in shown
        ],
    }


def _index_of(group: Group | None, groups: Sequence[Group]) -> int | None:
    return groups.index(group) if group in groups else None


def _level(number: int, count: int) -> str:
    """Return what a reader calls one of a run's layers, of which the first is the lowest.

    >>> [_level(number, 3) for number in range(3)], _level(1, 4), _level(0, 1)
    (['low', 'middle', 'top'], 'middle 1', 'top')
    """
    if number == count - 1:
        return "top"
    if number == 0:
        return "low"
    return "middle" if count == 3 else f"middle {number}"


def class_text(label: NDArray[Any], names: Sequence[str]) -> str:
    """Return the name of a class, or those of an image's several classes.

    >>> class_text(np.array([True, False, True]), ["cat", "dog", "fox"])
    'cat, fox'
    """
    if np.ndim(label) == 0:
        return names[int(label)]
    return ", ".join(names[int(index)] for index in np.flatnonzero(label)) or "none"


def _classes_and_labels(
    labels: NDArray[Any], names: Sequence[str]
) -> tuple[list[str], Sequence[int]]:
    """Return the classes to show and each image's index among them: several are one to show."""
    if labels.ndim == 1:
        return list(names), labels.tolist()
    texts = [class_text(label, names) for label in labels]
    shown = list(dict.fromkeys(texts))
    return shown, [shown.index(text) for text in texts]


def _fit_into_page(runs: Sequence[RunAttention], images: int) -> _View:
    """Choose how many images, and how fine maps, fit into the page."""
    for side in (LARGEST_SIDE, LARGEST_SIDE // 2, SMALLEST_SIDE):
        bytes_per_image = sum(
            (len(run.epochs) + bool(run.teacher_maps)) * _cells(maps, side)
            for run in runs
            for maps in run.student_maps[run.epochs[-1]]
        )
        affordable = MOST_BYTES // max(1, bytes_per_image)
        if affordable >= min(images, ENOUGH_IMAGES):
            break
    return _View(min(images, max(FEWEST_IMAGES, affordable)), side)


def _cells(maps: Maps, side: int) -> int:
    return int(min(maps.shape[1], side) * min(maps.shape[2], side))


class _TeacherMaps(NamedTuple):
    """The teacher's maps that a point of the student is compared with."""

    point: str
    maps: Maps


_Targets = dict[tuple[str, tuple[str, float]], _TeacherMaps]
"""By the student's point, and the mapping function and power of the maps."""


def _teacher_maps(runs: Sequence[RunAttention]) -> _Targets:
    """Return the teacher's maps; they also serve runs of the student alone."""
    targets: _Targets = {}
    for run in runs:
        for pair, maps in zip(run.points, run.teacher_maps, strict=False):
            student, _, teacher = pair.partition(":")
            targets.setdefault((student, run.map_function), _TeacherMaps(teacher, maps))
    return targets


def _run(label: str, attention: RunAttention, targets: _Targets, view: _View) -> dict[str, Any]:
    return {
        "label": label,
        "epochs": attention.epochs,
        "answers": [_answers(attention, epoch, view.images) for epoch in attention.epochs],
        "points": [
            _point(attention, number, targets, view) for number in range(len(attention.points))
        ],
    }


def _point(attention: RunAttention, number: int, targets: _Targets, view: _View) -> dict[str, Any]:
    """Return the maps of one point of the student by epoch, and the teacher's beside them."""
    student, _, teacher_point = attention.points[number].partition(":")
    target = targets.get((student, attention.map_function))
    if attention.teacher_maps:
        target = _TeacherMaps(teacher_point, attention.teacher_maps[number])
    by_epoch = [attention.student_maps[epoch][number][: view.images] for epoch in attention.epochs]
    small = [downsample(maps, view.side) for maps in by_epoch]
    level = _level(number, len(attention.points))
    if target is None:
        limits = common_limits(small[-1:])
        sprites = {"sprite": map_sprite(small, limits), "teacher_sprite": None}
        return {"level": level, "student": student, "teacher": None, "agreement": None, **sprites}
    teacher = downsample(target.maps[: view.images], view.side)
    limits = common_limits([small[-1], teacher])
    return {
        "level": level,
        "student": student,
        "teacher": target.point,
        "sprite": map_sprite(small, limits),
        "teacher_sprite": map_sprite([teacher], limits),
        "agreement": [
            cosine_similarity(maps, target.maps[: view.images]).round(3).tolist()
            for maps in by_epoch
        ],
    }


def _answers(attention: RunAttention, epoch: int, images: int) -> list[list[float]] | None:
    """Return the class that the student predicts for each image, and its probability."""
    logits = attention.student_logits.get(epoch)
    if logits is None or attention.probes["labels"].ndim == 2:
        return None
    probabilities = softmax(logits[:images])
    return [
        [int(label), round(float(row[label]), 3)]
        for label, row in zip(probabilities.argmax(axis=1), probabilities, strict=True)
    ]


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities (N, classes) of logits; infinite and NaN logits count as 0.

    >>> softmax(np.zeros((1, 2))).tolist()
    [[0.5, 0.5]]
    """
    finite = np.nan_to_num(logits.astype(np.float64), posinf=0, neginf=0)
    exponentials = np.exp(finite - finite.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
