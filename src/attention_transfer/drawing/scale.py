"""The scales that attention maps are shown on, and the colours that they are drawn in.

The raw strength of a map differs by orders of magnitude between networks and layers and means
nothing by itself. Two scales are in use:

- :func:`to_unit_mean` states attention in multiples of an even spread, a number that a legend can
  explain. Figures with a legend use it (``attention-transfer maps`` and ``at.show``).
- :func:`to_unit_rms` is the scale on which the attention loss compares maps. The report and the
  trackers' contact sheets use it, where student and teacher share one limit for each image.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from attention_transfer.errors import InputError

__all__ = [
    "COLOURS",
    "LARGEST_SIDE",
    "Maps",
    "Pixels",
    "check_axes",
    "colour_table",
    "colourize",
    "common_limits",
    "cosine_similarity",
    "downsample",
    "fractions",
    "shared_limit",
    "to_unit_mean",
    "to_unit_rms",
]

COLOURS = matplotlib.colormaps["inferno"].with_extremes(bad="#9a9a9a")
"""Perceptually uniform; readable by colour-blind people and in grey print. Grey marks NaN."""

LARGEST_SIDE = 32
"""Cells along the longer side of a map on the report page."""

Maps = NDArray[np.floating]
"""Attention maps (N, H, W)."""

Pixels = NDArray[np.uint8]
"""An image (H, W, 3), or several (N, H, W, 3)."""


def check_axes(attention: NDArray[np.generic], *axes: str) -> None:
    """Raise an InputError (a ValueError) unless maps have the named axes.

    >>> check_axes(np.zeros((2, 7)), "N", "H", "W")
    Traceback (most recent call last):
    attention_transfer.errors.InputError: got attention maps of shape (2, 7), expected (N, H, W): \
only maps with two spatial axes can be drawn; choose other attention points
    """
    if attention.ndim != len(axes):
        raise InputError(
            f"got attention maps of shape {attention.shape}, expected ({', '.join(axes)}): only "
            "maps with two spatial axes can be drawn; choose other attention points"
        )


def to_unit_mean(attention: NDArray[np.floating]) -> NDArray[np.float64]:
    """Divide one map (H, W) by its mean: attention in multiples of an even spread.

    Values that are not finite become NaN and do not enter the mean; an all-zero map stays zero.

    >>> to_unit_mean(np.array([[1.0, 3.0]])), to_unit_mean(np.zeros((1, 2)))
    (array([[0.5, 1.5]]), array([[0., 0.]]))
    """
    check_axes(attention, "H", "W")
    values = np.asarray(attention, dtype=np.float64)
    finite = np.isfinite(values)
    mean = values[finite].mean() if finite.any() else 0.0
    return np.where(finite, values / mean if mean > 0 else values, np.nan)


def to_unit_rms(maps: Maps) -> NDArray[np.float64]:
    """Divide each map of (N, H, W) by its root mean square over positions.

    This is the l2-normalized map of the attention loss times sqrt(H * W), so that maps of
    different sizes have comparable values. Values that are not finite count as zero; an all-zero
    map stays zero.

    >>> to_unit_rms(np.array([[[3.0, 4.0, 0.0, 0.0]]])).tolist()
    [[[1.2, 1.6, 0.0, 0.0]]]
    """
    check_axes(maps, "N", "H", "W")
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    # Dividing by the largest value first keeps the squares of very large and small maps finite.
    flat = flat / np.maximum(np.abs(flat).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    rms = np.sqrt(np.square(flat).mean(axis=1, keepdims=True))
    return np.asarray((flat / np.where(rms > 0, rms, 1)).reshape(maps.shape))


def shared_limit(maps: Sequence[NDArray[np.float64]]) -> float:
    """Return the value of the brightest colour for several maps of unit mean.

    It is the whole number above the 99th percentile of every map, between 2 and 5.

    >>> shared_limit([np.array([[0.5, 1.5]]), np.array([[0.0, 3.1, 2.9]])])
    4.0
    """
    finite = [attention[np.isfinite(attention)] for attention in maps]
    percentiles = [float(np.quantile(values, 0.99)) for values in finite if values.size]
    return float(min(5, max(2, np.ceil(max(percentiles, default=2)))))


def common_limits(networks: Sequence[Maps]) -> NDArray[np.float64]:
    """Return for each image the largest value among several networks' maps (N, H, W).

    >>> common_limits([np.array([[[1.0, 2.0]]]), np.array([[[3.0]]])])
    array([3.])
    """
    return np.asarray(np.max([maps.max(axis=(1, 2)) for maps in networks], axis=0))


def fractions(attention: NDArray[np.floating], limit: ArrayLike) -> NDArray[np.float64]:
    """Divide maps by the value of the brightest colour, clipped to 0 to 1.

    NaN, and every value where the limit is zero, become 0.

    Args:
        attention: one map (H, W), or several (N, H, W).
        limit: one value, or one for each map (N,).

    >>> fractions(np.array([[1.0, 9.0, np.nan]]), 2.0)
    array([[0.5, 1. , 0. ]])
    """
    limits = np.asarray(limit, dtype=np.float64)
    limits = limits.reshape(limits.shape + (1, 1) * bool(limits.ndim))
    shares: NDArray[np.float64] = np.divide(attention, np.where(limits > 0, limits, np.inf))
    shares = np.nan_to_num(shares)
    return shares.clip(0, 1)


def colourize(shares: NDArray[np.floating]) -> Pixels:
    """Return the colours (..., 3) of fractions from 0 (no attention) to 1 (most)."""
    pixels: Pixels = COLOURS(shares, bytes=True)[..., :3]
    return pixels


def colour_table() -> list[int]:
    """Return red, green and blue of the 256 colours, from no attention to most, in one list."""
    table: list[int] = COLOURS(np.arange(256), bytes=True)[:, :3].ravel().tolist()
    return table


def downsample(maps: Maps, largest: int = LARGEST_SIDE) -> NDArray[np.float64]:
    """Average maps (N, H, W) down to at most ``largest`` cells a side, each of unit RMS.

    >>> downsample(np.ones((1, 4, 2)), largest=2).tolist()
    [[[1.0], [1.0]]]
    """
    check_axes(maps, "N", "H", "W")
    scale = min(1.0, largest / max(maps.shape[1:]))
    height, width = (max(1, round(scale * side)) for side in maps.shape[1:])
    return to_unit_rms(_averaged(to_unit_rms(maps), (height, width)))


def cosine_similarity(student: Maps, teacher: Maps) -> NDArray[np.float64]:
    """Return the cosine (N,) between the maps of each image, as ``at.measures.cosine`` does.

    Maps (N, H, W) are compared at the smaller size of the two, axis by axis.

    >>> cosine_similarity(np.array([[[3.0, 4.0]]]), np.array([[[4.0, 3.0]]])).round(2).tolist()
    [0.96]
    """
    for maps in (student, teacher):
        check_axes(maps, "N", "H", "W")
    height, width = np.minimum(student.shape[1:], teacher.shape[1:])
    student, teacher = (
        to_unit_rms(_averaged(to_unit_rms(maps), (int(height), int(width))))
        for maps in (student, teacher)
    )
    return np.asarray((student * teacher).mean(axis=(1, 2)))


def _averaged(maps: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Average maps over the cells of a coarser grid (height, width)."""
    if maps.shape[1:] == size:
        return maps
    images = [Image.fromarray(attention.astype(np.float32)) for attention in maps]
    coarse = [image.resize((size[1], size[0]), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, dtype=np.float64) for image in coarse])
