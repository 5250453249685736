"""Which classes are taken for which."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.groups import Group

__all__ = ["confusion"]

MOST_CLASSES = 20
"""Of a matrix that is shown whole."""

MOST_PAIRS = 15


def confusion(group: Group, names: Sequence[str]) -> dict[str, Any]:
    """The matrix of a group's answers to the test images, its runs added up, if it is small enough
    to read; and the pairs mistaken most.
    """
    matrices = [np.array(run.record.final.test_confusion, dtype=np.int64) for run in group.runs]
    counts = np.sum(matrices, axis=0)
    return {
        "label": group.label,
        "rows": _rows(counts, names) if len(counts) <= MOST_CLASSES else [],
        "names": list(names),
        "pairs": _most_mistaken(counts, names),
        "error": group.shown_error,
    }


def _rows(counts: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    totals = np.maximum(counts.sum(axis=1), 1)
    return [
        {
            "name": names[true],
            "cells": [
                {"count": int(count), "heat": _heat(count / totals[true]), "right": true == taken}
                for taken, count in enumerate(row)
            ],
        }
        for true, row in enumerate(counts)
    ]


def _heat(share: float) -> int:
    """A share in steps from 0 to 10; the smallest share above 0 is 1."""
    return int(np.ceil(10 * np.sqrt(share)))


def _most_mistaken(counts: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [np.unravel_index(index, mistakes.shape) for index in order]
    return [
        {
            "true": names[true],
            "taken": names[taken],
            "count": int(mistakes[true, taken]),
            "of": int(counts[true].sum()),
        }
        for true, taken in pairs
        if mistakes[true, taken]
    ]
