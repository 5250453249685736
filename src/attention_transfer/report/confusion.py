"""Which classes are taken for which."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["confusion"]

MOST_CLASSES = 20
"""Of a matrix that is shown whole."""

MOST_PAIRS = 15


def confusion(label: str, final: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The matrix of test images, if it is small enough to read, and the pairs mistaken most.

    Args:
        label: whose.
        final: the figures of a run, with ``test_confusion``: images by true class (rows) and
            predicted class (columns).
        names: of the classes.
    """
    counts = np.array(final["test_confusion"], dtype=np.int64)
    return {
        "label": label,
        "rows": _rows(counts, names) if len(counts) <= MOST_CLASSES else [],
        "names": list(names),
        "pairs": _most_mistaken(counts, names),
        "error": f"{final['test_error']:.1f}",
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
