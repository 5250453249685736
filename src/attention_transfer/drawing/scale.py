"""Raw maps brought to one scale: what the loss compares, whatever their size and strength."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["LARGEST", "Maps", "cosines", "relative", "shrunk"]

LARGEST = 32
"""Cells of a map's side as the page shows it."""

Maps = NDArray[np.floating]
"""(N, H, W)."""


def relative(maps: Maps) -> NDArray[np.float64]:
    """Maps over their own root mean square, so that networks and sizes can be compared; unit
    vectors, times the root of the number of places. Zero maps stay zero; values that are not finite
    count as zero.

    >>> relative(np.array([[[3.0, 4.0, 0.0, 0.0]]])).tolist()
    [[[1.2, 1.6, 0.0, 0.0]]]
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    flat = flat / np.maximum(np.abs(flat).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    strength = np.sqrt(np.square(flat).mean(axis=1, keepdims=True))
    return np.asarray((flat / np.where(strength > 0, strength, 1)).reshape(maps.shape))


def shrunk(maps: Maps, largest: int = LARGEST) -> NDArray[np.float64]:
    """Relative maps with no side longer than a number of cells; larger ones are averaged.

    >>> shrunk(np.ones((1, 4, 2)), largest=2).tolist()
    [[[1.0], [1.0]]]
    """
    scale = min(1.0, largest / max(maps.shape[1:]))
    height, width = (max(1, round(scale * side)) for side in maps.shape[1:])
    return relative(_averaged(relative(maps), (height, width)))


def cosines(student: Maps, teacher: Maps) -> NDArray[np.float64]:
    """How alike the maps of each image are, 1 where they are equal but for their strength; compared
    at the smaller size of the two, axis by axis.

    >>> cosines(np.array([[[3.0, 4.0]]]), np.array([[[4.0, 3.0]]])).round(2).tolist()
    [0.96]
    """
    height, width = np.minimum(student.shape[1:], teacher.shape[1:])
    ours, theirs = (
        relative(_averaged(relative(maps), (int(height), int(width))))
        for maps in (student, teacher)
    )
    return np.asarray((ours * theirs).mean(axis=(1, 2)))


def _averaged(maps: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Over the areas of a coarser grid."""
    if maps.shape[1:] == size:
        return maps
    pictures = [Image.fromarray(map_.astype(np.float32)) for map_ in maps]
    small = [picture.resize((size[1], size[0]), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(picture, dtype=np.float64) for picture in small])
