"""The confusion of classes on the test images, or validation images with --no-test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.groups import Group
from attention_transfer.runs.confusion import Confusion

__all__ = ["confusion"]

MOST_CLASSES = 20
"""Classes of a matrix that is still readable; of more, only the most confused pairs are shown."""

MOST_PAIRS = 15


def confusion(group: Group, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the confusion matrix of a group and its most confused pairs of classes.

    Args:
        group: runs, whose matrices are added.
        names: of the classes.

    Returns:
        None if there is none, as of images of several classes each.
    """
    split = group.representative.record.final.held_out.split
    found = [run.confusion(split) for run in group.runs]
    known = [one for one in found if one is not None]
    if not known:
        return None
    total = Confusion.total(known)
    counts = total.images_by_class
    return {
        "label": group.label,
        "rows": _rows(total.matrix(), names) if total.classes <= MOST_CLASSES else [],
        "names": list(names),
        "pairs": [
            {
                "true": names[true],
                "predicted": names[predicted],
                "count": images,
                "of": int(counts[true]),
            }
            for true, predicted, images in total.mistakes(MOST_PAIRS)
        ],
        "error": group.error_text,
    }


def _rows(counts: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    totals = np.maximum(counts.sum(axis=1), 1)
    return [
        {
            "name": names[label],
            "cells": [
                {
                    "count": int(count),
                    "heat": _heat(count / totals[label]),
                    "right": label == predicted,
                }
                for predicted, count in enumerate(row)
            ],
        }
        for label, row in enumerate(counts)
    ]


def _heat(share: float) -> int:
    """Return the page's colour step, 0 to 10, for a share; every share above 0 is at least 1."""
    return int(np.ceil(10 * np.sqrt(share)))
