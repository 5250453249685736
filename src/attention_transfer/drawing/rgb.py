"""Pixels of any number of channels as colours to look at."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["to_rgb"]


def to_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels as colours of 8 bits.

    One channel, and the mean of two, is grey; of three and more the first three are red, green and
    blue.

    Args:
        pixels: (..., H, W, C), uint8 or floating-point from 0 to 1.

    Returns:
        (..., H, W, 3).

    Example:
        >>> to_rgb(np.full((2, 4, 4, 5), 0.2)).shape, int(to_rgb(np.full((4, 4, 1), 0.2)).max())
        ((2, 4, 4, 3), 51)
    """
    if pixels.shape[-1] < 3:
        mean = pixels.mean(-1, keepdims=True) if pixels.shape[-1] == 2 else pixels
        pixels = mean.astype(pixels.dtype).repeat(3, axis=-1)
    colours = pixels[..., :3]
    if colours.dtype != np.uint8:
        colours = np.rint(255 * colours.clip(0, 1))
    return colours.astype(np.uint8, copy=False)
