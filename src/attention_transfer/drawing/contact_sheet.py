"""Contact sheets for experiment trackers: images, and under each its attention maps."""

from collections.abc import Sequence

import numpy as np

from attention_transfer.drawing.scale import (
    Maps,
    Pixels,
    colourize,
    common_limits,
    fractions,
    to_unit_rms,
)

__all__ = ["contact_sheet"]

MOST_IMAGES = 8
"""Images on a sheet; of more, as many at equal distances."""

SMALLEST_SIDE, GAP = 64, 2
"""Pixels: the least length of a cell's longer side, and the space between cells."""


def contact_sheet(images: Pixels, networks: Sequence[Maps]) -> Pixels:
    """Draw images side by side, and below them one row of maps for each network.

    Maps are compared as the attention loss does, whatever their strength: each has unit root mean
    square, and the largest value among one image's maps has the brightest colour.

    Args:
        images: (N, H, W, 3).
        networks: the maps (N, h, w) of each network; sizes may differ.

    Returns:
        One picture (H', W', 3).

    Example:
        >>> contact_sheet(np.zeros((2, 64, 64, 3), np.uint8), [np.ones((2, 4, 4))]).shape
        (130, 130, 3)
    """
    chosen = np.linspace(0, len(images) - 1, min(MOST_IMAGES, len(images))).round().astype(int)
    images = images[chosen]
    scaled = [to_unit_rms(maps[chosen]) for maps in networks]
    limits = common_limits(scaled)
    rows = [images, *(colourize(fractions(maps, limits)) for maps in scaled)]
    size = _cell_size(images.shape[1], images.shape[2])
    return _joined([_joined([_enlarged(cell, size) for cell in row], 1) for row in rows], 0)


def _cell_size(height: int, width: int) -> tuple[int, int]:
    """Return a whole multiple of the images' size, so that small images stay sharp."""
    scale = -(-SMALLEST_SIDE // max(height, width))
    return scale * height, scale * width


def _enlarged(cell: Pixels, size: tuple[int, int]) -> Pixels:
    """Repeat pixels up to a size (height, width), without smoothing them."""
    rows = np.arange(size[0]) * cell.shape[0] // size[0]
    columns = np.arange(size[1]) * cell.shape[1] // size[1]
    enlarged: Pixels = cell[rows][:, columns]
    return enlarged


def _joined(cells: Sequence[Pixels], axis: int) -> Pixels:
    """Join cells along an axis, with a white gap between them."""
    gap = list(cells[0].shape)
    gap[axis] = GAP
    white = np.full(gap, 255, dtype=np.uint8)
    parts = [part for cell in cells for part in (white, cell)][1:]
    return np.concatenate(parts, axis=axis)
