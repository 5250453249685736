"""Which classes are taken for which others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Confusion"]


@dataclass(frozen=True)
class Confusion:
    """How many images of each class were predicted as which class.

    Only counts above 0 are held, so that its size grows with the images and not with the square of
    the classes.

    Example:
        >>> found = Confusion.of(np.array([0, 1, 1]), np.array([0, 0, 0]), classes=3)
        >>> found.matrix().tolist()
        [[1, 0, 0], [2, 0, 0], [0, 0, 0]]
    """

    classes: int
    counts: NDArray[np.int64]
    """(n, 3): true class, predicted class, images; in the order of the classes."""

    @classmethod
    def of(
        cls, labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int
    ) -> "Confusion":
        """Count labels (N,) and predictions (N,), each from 0 to classes - 1."""
        pairs, images = np.unique(labels * classes + predictions, return_counts=True)
        return cls(classes, np.stack([pairs // classes, pairs % classes, images], axis=1))

    @classmethod
    def total(cls, parts: Sequence["Confusion"]) -> "Confusion":
        """Return the sum of several, of the same classes."""
        classes = parts[0].classes
        true, predicted, images = np.concatenate([part.counts for part in parts]).T
        pairs, places = np.unique(true * classes + predicted, return_inverse=True)
        summed = np.bincount(places, weights=images).astype(np.int64)
        return cls(classes, np.stack([pairs // classes, pairs % classes, summed], axis=1))

    @property
    def images_by_class(self) -> NDArray[np.int64]:
        """The number of images of each class, (K,)."""
        true, _, images = self.counts.T
        return np.bincount(true, weights=images, minlength=self.classes).astype(np.int64)

    def matrix(self) -> NDArray[np.int64]:
        """Return the counts by true class (rows) and predicted class (columns), (K, K)."""
        dense = np.zeros((self.classes, self.classes), dtype=np.int64)
        true, predicted, images = self.counts.T
        dense[true, predicted] = images
        return dense

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """Return the most frequent mistakes: true class, predicted class, images."""
        wrong = self.counts[self.counts[:, 0] != self.counts[:, 1]]
        order = np.argsort(-wrong[:, 2], kind="stable")[:most]
        return [(true, predicted, images) for true, predicted, images in wrong[order].tolist()]
