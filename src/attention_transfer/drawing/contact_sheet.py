"""Small pictures of attention on the probes, for experiment trackers, from a run's raw maps."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

__all__ = ["contact_sheets", "sheet"]

MOST = 8
"""Images in a sheet."""

SMALLEST, GAP = 64, 2
"""Pixels: of a cell's longer side at least, and between cells."""

Pixels = NDArray[np.uint8]
Maps = NDArray[np.floating[Any]]


def contact_sheets(attention: Path, epoch: int) -> dict[str, Pixels]:
    """A sheet for each pair of points (or point of a student alone), as :func:`sheet` draws it.

    Args:
        attention: a run's folder of raw maps.
        epoch: after how many epochs; one at which the probes were looked at.
    """
    probes = _read(attention / "probes.npz")
    student = _read(attention / f"epoch-{epoch:04d}.npz")
    taught = (attention / "teacher.npz").exists()
    teacher = _read(attention / "teacher.npz") if taught else {}
    images = probes["images"]
    chosen = np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int)
    sheets = {}
    for number, name in enumerate(probes["points"].tolist()):
        rows = [teacher[f"teacher/{number}"][chosen]] if taught else []
        sheets[name] = sheet(images[chosen], [*rows, student[f"student/{number}"][chosen]])
    return sheets


def sheet(images: Pixels, rows: list[Maps]) -> Pixels:
    """Images (N, H, W, 3) side by side, and under each its maps, from black to bright: a row for
    each (N, h, w) given.

    Maps are compared as the loss does, without regard to their scale: each is divided by its root
    mean square, and the brightest cell of an image's maps is the brightest colour.

    >>> sheet(np.zeros((2, 64, 64, 3), np.uint8), [np.ones((2, 4, 4))]).shape
    (130, 130, 3)
    """
    shares = [maps / _root_mean_square(maps) for maps in rows]
    most = np.max([maps.max(axis=(1, 2)) for maps in shares], axis=0)[:, None, None]
    colours = mpl.colormaps["inferno"]
    drawn = [images]
    for maps in shares:
        parts = np.divide(maps, most, out=np.zeros_like(maps), where=most > 0)
        drawn.append(colours(parts, bytes=True)[..., :3])
    size = _cell_size(images.shape[1], images.shape[2])
    return _beside([_beside([_resized(cell, size) for cell in row], 1) for row in drawn], 0)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _root_mean_square(maps: Maps) -> NDArray[np.float64]:
    """(N, 1, 1); 1 of an empty map."""
    largest = maps.max(axis=(1, 2), keepdims=True).astype(np.float64)
    largest[largest == 0] = 1
    mean = np.square(maps / largest).mean(axis=(1, 2), keepdims=True)
    return np.asarray(largest * np.sqrt(np.where(mean > 0, mean, 1)))


def _cell_size(height: int, width: int) -> tuple[int, int]:
    """Whole multiples, so that small images stay sharp."""
    scale = -(-SMALLEST // max(height, width))
    return scale * height, scale * width


def _resized(cell: Pixels, size: tuple[int, int]) -> Pixels:
    """Every pixel a block: maps have few cells, and each is seen."""
    rows, columns = (
        np.arange(wanted) * given // wanted for wanted, given in zip(size, cell.shape, strict=False)
    )
    blocks: Pixels = cell[rows][:, columns]
    return blocks


def _beside(cells: list[Pixels], axis: int) -> Pixels:
    """Joined, with a white gap between."""
    gap = list(cells[0].shape)
    gap[axis] = GAP
    white = np.full(gap, 255, dtype=np.uint8)
    joined = [part for cell in cells for part in (white, cell)][1:]
    return np.concatenate(joined, axis=axis)
