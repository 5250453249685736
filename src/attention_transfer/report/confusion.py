"""The confusion of classes on the test images, or validation images with --no-test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.groups import Group

__all__ = ["confusion"]

MOST_CLASSES = 20
"""Classes of a matrix that is still readable; of more, only the most confused pairs are shown."""

MOST_PAIRS = 15


def confusion(group: Group, names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix of a group and its most confused pairs of classes.

    Args:
        group: runs, whose matrices are added.
        names: of the classes.
    """
    matrices = [np.array(run.record.final.held_out.confusion, dtype=np.int64) for run in group.runs]
    counts = np.sum(matrices, axis=0)
    return {
        "label": group.label,
        "rows": _rows(counts, names) if len(counts) <= MOST_CLASSES else [],
        "names": list(names),
        "pairs": _most_confused(counts, names),
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


def _most_confused(counts: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [np.unravel_index(index, mistakes.shape) for index in order]
    return [
        {
            "true": names[label],
            "predicted": names[predicted],
            "count": int(mistakes[label, predicted]),
            "of": int(counts[label].sum()),
        }
        for label, predicted in pairs
        if mistakes[label, predicted]
    ]
