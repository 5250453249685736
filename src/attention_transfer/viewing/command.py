"""The work of ``attention-transfer maps``: write pictures and raw maps to a folder."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.config import MapsConfig, height_and_width, low_and_high
from attention_transfer.drawing.maps import MapsFigure, count_lines, draw_maps
from attention_transfer.errors import InputError
from attention_transfer.files import replacing, write_arrays
from attention_transfer.inference.images import FileImage, find_image_files
from attention_transfer.inference.networks import named_models
from attention_transfer.preprocessing import PixelRange
from attention_transfer.runs import new_folder, writing_to
from attention_transfer.viewing.layout import MapGrid, compute_grid, on_one_scale
from attention_transfer.viewing.network_maps import MapRequest

__all__ = ["MapsResult", "write_maps"]

MOST_LINES = 8
"""Lines of cells in one picture; further images go into further pictures."""

SLIDE_COLUMN_WIDTH = 2.1
"""Inches of a column in a picture of one image."""


@dataclass(frozen=True)
class MapsResult:
    """The maps that were computed, and the files that hold them."""

    folder: Path
    pictures: list[Path]
    raw: Path
    """The arrays, ``maps.npz``."""
    grid: MapGrid
    images: list[Path]
    """The image files that were read."""
    unreadable: list[tuple[Path, str]]
    """The image files that were skipped, and why."""


def write_maps(config: MapsConfig) -> MapsResult:
    """Compute attention maps, draw them and write the raw arrays.

    Args:
        config: networks, images, points and the folder to write to.

    Raises:
        InputError: a network, an image or a point does not exist, or the folder already holds
            maps; nothing is written.
    """
    folder = config.out or new_folder("maps")
    _check_free(folder)
    paths = find_image_files(config.images)
    size = None if config.image_size is None else height_and_width(config.image_size)
    networks = named_models(list(config.models), size)
    sources = _named_images(paths)
    given = None if config.pixel_range is None else PixelRange(*low_and_high(config.pixel_range))
    networks = on_one_scale(networks, sources, given)
    request = MapRequest(config.points, config.attention, config.map, config.power, config.crop)
    grid, reasons = compute_grid(networks, sources, request)
    unreadable = [(paths[index], reason) for index, reason in reasons.items()]
    if not grid.images:
        path, reason = unreadable[0]
        more = f"; nor can {len(unreadable) - 1} others" if len(unreadable) > 1 else ""
        raise InputError(f"{path} cannot be read: {reason}{more}; give at least one intact image")
    images = [path for index, path in enumerate(paths) if index not in reasons]
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [
            _save(figure, folder / f"{name}.{config.format}")
            for name, figure in _figures(grid, config)
        ]
        raw = folder / "maps.npz"
        write_arrays(raw, _raw_arrays(grid, images))
    return MapsResult(folder, pictures, raw, grid, images, unreadable)


def _check_free(folder: Path) -> None:
    """Raise an InputError if the folder already holds maps or cannot be a folder."""
    with writing_to(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise InputError(f"{folder} is not a folder; choose another --out")
        existing = sorted(folder.glob("maps*")) if os.path.isdir(folder) else []
    if existing:
        raise InputError(f"{folder} already holds maps ({existing[0].name}); choose another --out")


def _named_images(paths: list[Path]) -> list[FileImage]:
    """Return images named after their files, or by their paths where file names repeat."""
    images = [FileImage(path) for path in paths]
    names = [path.name for path in paths]
    for image in images:
        if names.count(image.name) > 1:
            image.name = str(image.path)
    return images


def _figures(grid: MapGrid, config: MapsConfig) -> Iterator[tuple[str, MapsFigure]]:
    """Draw the pictures on one scale; yield each with its file's stem."""
    columns, rows = grid.columns(), grid.rows()
    limit = grid.limit() if config.scale == "shared" else None
    if config.per_image:
        digits = len(str(len(rows)))
        for number, row in enumerate(rows, start=1):
            stem = re.sub(r"[^\w.-]+", "-", Path(row.name).stem)[:60]
            figure = draw_maps(columns, [row], limit, grid.caption(), SLIDE_COLUMN_WIDTH)
            yield f"maps-{number:0{digits}}-{stem}", figure
        return
    count = max(1, MOST_LINES // count_lines(columns))
    for page, start in enumerate(range(0, len(rows), count), start=1):
        figure = draw_maps(columns, rows[start : start + count], limit, grid.caption())
        yield "maps" if page == 1 else f"maps-{page}", figure


def _save(figure: MapsFigure, path: Path) -> Path:
    """Write a picture, complete or not at all, and return its path."""
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:])
    return path


def _raw_arrays(grid: MapGrid, images: list[Path]) -> dict[str, NDArray[Any]]:
    """Return the content of ``maps.npz``, which docs/maps.md describes."""
    answers = [[one.answer for one in results] for results in grid.results]
    maps = {
        f"{network}/{point.name}": np.stack([one.maps[number] for one in results])
        for network, (points, results) in enumerate(zip(grid.points, grid.results, strict=True))
        for number, point in enumerate(points)
    }
    return {
        "schema_version": np.array(1),
        "attention": np.array(grid.request.attention),
        "map": np.array(grid.request.map),
        "power": np.array(grid.request.power),
        "networks": np.array([network.name for network in grid.networks]),
        "models": np.array([network.model for network in grid.networks]),
        "images": np.array([str(image) for image in images]),
        "predictions": np.array([[one.label if one else -1 for one in row] for row in answers]),
        "predicted_names": np.array([[one.name if one else "" for one in row] for row in answers]),
        "probabilities": np.array(
            [[one.probability if one else np.nan for one in row] for row in answers],
            dtype=np.float32,
        ),
        "boxes": np.array([[one.box for one in results] for results in grid.results]),
        "points": np.array(list(maps)),
        **maps,
    }
