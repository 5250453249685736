"""Test images to inspect: low agreement with the teacher, and changed answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attention_transfer.drawing.scale import Maps, cosine_similarity, downsample
from attention_transfer.drawing.sprites import coloured_map, encode_image
from attention_transfer.report.comparison import AnswerChanges
from attention_transfer.report.groups import Group
from attention_transfer.report.viewer import class_text, softmax
from attention_transfer.runs import RunAttention

__all__ = ["changed_images", "disagreements"]

SHOWN = 6
"""Images of each kind."""


def disagreements(groups: Sequence[Group], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each distilled group, the test images with the least similar top-level maps."""
    return [
        _disagreement(group, group.attention, names)
        for group in groups
        if group.attention is not None and group.attention.example_maps("teacher")
    ]


def _disagreement(group: Group, attention: RunAttention, names: Sequence[str]) -> dict[str, Any]:
    student, teacher = (
        _maps_at(attention, network, attention.coarsest_point) for network in ("student", "teacher")
    )
    assert student is not None
    assert teacher is not None
    cosines = cosine_similarity(student, teacher)
    images = [
        {
            **_image(attention, int(index), names),
            "answers": [_answer("student", attention, int(index), names)],
            "cosine": f"{cosines[index]:.2f}",
            "maps": _drawn_maps([("teacher", teacher), ("student", student)], int(index)),
        }
        for index in np.argsort(cosines, kind="stable")[:SHOWN]
    ]
    return {
        "label": group.representative_label,
        "point": attention.points[attention.point_index(attention.coarsest_point) or 0],
        "median": f"{np.median(cosines):.2f}",
        "images": images,
    }


def changed_images(
    changes: AnswerChanges, names: Sequence[str]
) -> dict[bool, list[dict[str, Any]]]:
    """Return test images that were corrected (True) and newly wrong (False), with their maps.

    As many of each are shown, where there are some of both: a page of successes alone would
    flatter.
    """
    after, before = changes.distilled.attention, changes.alone.attention
    if after is None:
        return {True: [], False: []}
    kept = {
        kind: [index for index, corrected in changes.examples if corrected is kind]
        for kind in (True, False)
    }
    fewest = min(len(indices) for indices in kept.values()) or SHOWN
    return {
        kind: [_change(before, after, index, names) for index in indices[: min(SHOWN, fewest)]]
        for kind, indices in kept.items()
    }


def _change(
    before: RunAttention | None, after: RunAttention, index: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return a test image with the answers of the student alone and of the distilled one."""
    return {
        **_image(after, index, names),
        "answers": [
            _answer("alone", before if _same(before, after, index) else None, index, names),
            _answer("distilled", after, index, names),
        ],
        "cosine": None,
        "maps": _drawn_maps(list(_before_and_after(before, after, index)), index),
    }


def _before_and_after(
    before: RunAttention | None, after: RunAttention, index: int
) -> Iterator[tuple[str, Maps]]:
    """Yield the maps at the distilled student's top level: alone, distilled, and the teacher's."""
    if (
        before is not None
        and before.map_function == after.map_function
        and _same(before, after, index)
    ):
        alone = _maps_at(before, "student", after.coarsest_point)
        if alone is not None:
            yield "alone", alone
    for name, network in (("distilled", "student"), ("teacher", "teacher")):
        maps = _maps_at(after, network, after.coarsest_point)
        if maps is not None:
            yield name, maps


def _maps_at(attention: RunAttention, network: str, student_point: str) -> Maps | None:
    """Return a network's maps of the test images at the layer pair of a student's point."""
    number, maps = attention.point_index(student_point), attention.example_maps(network)
    return maps[number] if maps and number is not None else None


def _same(before: RunAttention | None, after: RunAttention, index: int) -> bool:
    """Return whether both runs kept the same test image under an index."""
    if before is None:
        return False
    first, second = (run.examples.get("indices", np.zeros(0)) for run in (before, after))
    return bool(index < len(first) and first[index] == second[index])


def _drawn_maps(networks: Sequence[tuple[str, Maps]], index: int) -> list[dict[str, str]]:
    """Draw one image's maps of several networks, with one limit."""
    maps = [(name, downsample(values[index : index + 1])[0]) for name, values in networks]
    limit = max(float(attention.max()) for _, attention in maps)
    return [{"name": name, "data": coloured_map(attention, limit)} for name, attention in maps]


def _image(attention: RunAttention, index: int, names: Sequence[str]) -> dict[str, Any]:
    examples = attention.examples
    return {
        "data": encode_image(examples["images"][index]),
        "name": str(examples["names"][index]),
        "class": class_text(examples["labels"][index], names),
    }


def _answer(
    network: str, attention: RunAttention | None, index: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return the class that a student predicts, its probability, and whether it is right."""
    logits = None if attention is None else attention.examples.get("student/logits")
    if attention is None or logits is None:
        return {"network": network, "predicted": "?", "probability": "", "right": False}
    truth = attention.examples["labels"][index]
    if np.ndim(truth):
        return {
            "network": network,
            "predicted": class_text(logits[index] > 0, names),
            "probability": "",
            "right": bool(((logits[index] > 0) == (truth > 0)).all()),
        }
    probabilities = softmax(logits[index : index + 1])[0]
    predicted = int(probabilities.argmax())
    return {
        "network": network,
        "predicted": names[predicted],
        "probability": f"({100 * probabilities[predicted]:.0f}\N{NO-BREAK SPACE}%)",
        "right": predicted == int(truth),
    }
