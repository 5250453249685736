"""What ``attention-transfer maps`` does: pictures and raw maps in a folder."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.config import MapsConfig, height_and_width
from attention_transfer.drawing.maps import MapsFigure, draw_maps, lines_of
from attention_transfer.errors import InputError
from attention_transfer.runs import new_folder, writing_to
from attention_transfer.viewing.images import FilePicture, find_files
from attention_transfer.viewing.inference import MapRequest
from attention_transfer.viewing.layout import MapGrid, see
from attention_transfer.viewing.networks import NamedModel, networks_of

__all__ = ["MapsResult", "look"]

MOST_LINES = 8
"""Of images in a file."""

SLIDE_WIDTH = 2.1
"""Inches of a column in a file for one image."""


@dataclass(frozen=True)
class MapsResult:
    """What was seen, and where it is."""

    folder: Path
    files: list[Path]
    """The pictures."""
    raw: Path
    """``maps.npz``."""
    seen: MapGrid
    images: list[Path]
    """Those that were seen."""
    unreadable: list[tuple[Path, str]]
    """Images that were left out, and why."""


def look(config: MapsConfig) -> MapsResult:
    """Draws where networks look, and writes the raw maps.

    Raises:
        InputError: nothing is written then.
    """
    folder = config.out or new_folder("maps")
    _check_free(folder)
    paths = find_files(config.images)
    networks = [_sized(network, config) for network in networks_of(list(config.models))]
    asked = MapRequest(config.points, config.attention, config.map, config.power, config.crop)
    seen, faults = see(networks, _pictures(paths), asked)
    unreadable = [(paths[place], reason) for place, reason in faults.items()]
    if not seen.scenes:
        path, reason = unreadable[0]
        more = f"; nor can {len(unreadable) - 1} others" if len(unreadable) > 1 else ""
        raise InputError(
            f"{path} cannot be read: {reason}{more}; expected at least one whole image"
        )
    images = [path for place, path in enumerate(paths) if place not in faults]
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = [
            _written(folder / f"{name}.{config.format}", figure)
            for name, figure in _figures(seen, config)
        ]
        raw = _write_raw(folder / "maps.npz", seen, images)
    return MapsResult(folder, files, raw, seen, images, unreadable)


def _check_free(folder: Path) -> None:
    """Raises an InputError if there are maps in the folder, or there can be no folder."""
    with writing_to(folder):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise InputError(f"{folder} is not a folder; choose another --out")
        there = sorted(folder.glob("maps*")) if os.path.isdir(folder) else []
    if there:
        raise InputError(f"{folder} already holds maps ({there[0].name}); choose another --out")


def _sized(network: NamedModel, config: MapsConfig) -> NamedModel:
    if config.image_size is None or network.normalization is None:
        return network
    size = height_and_width(config.image_size)
    return replace(network, normalization=network.normalization._replace(size=size))


def _pictures(paths: list[Path]) -> list[FilePicture]:
    """The images, called by their files' names; by their paths where those are the same."""
    pictures = [FilePicture(path) for path in paths]
    names = [path.name for path in paths]
    for picture in pictures:
        if names.count(picture.name) > 1:
            picture.name = str(picture.path)
    return pictures


def _figures(seen: MapGrid, config: MapsConfig) -> Iterator[tuple[str, MapsFigure]]:
    """The pictures and the names of their files, all on one scale."""
    columns, rows = seen.columns(), seen.rows()
    limit = seen.limit() if config.scale == "shared" else None
    if config.per_image:
        for number, row in enumerate(rows, start=1):
            stem = re.sub(r"[^\w.-]+", "-", Path(row.name).stem)[:60]
            figure = draw_maps(columns, [row], limit, seen.caption(), SLIDE_WIDTH)
            yield f"maps-{number:0{len(str(len(rows)))}}-{stem}", figure
        return
    count = max(1, MOST_LINES // lines_of(columns))
    for page, start in enumerate(range(0, len(rows), count), start=1):
        figure = draw_maps(columns, rows[start : start + count], limit, seen.caption())
        yield "maps" if page == 1 else f"maps-{page}", figure


def _written(path: Path, figure: MapsFigure) -> Path:
    """The picture's path; the file is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format=path.suffix[1:])
    partial.rename(path)
    return path


def _write_raw(path: Path, seen: MapGrid, images: list[Path]) -> Path:
    """Everything that was seen, as numbers and texts; written last, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "schema_version": np.array(1),
        "attention": np.array(seen.look.attention),
        "map": np.array(seen.look.map),
        "power": np.array(seen.look.power),
        "networks": np.array([network.name for network in seen.networks]),
        "models": np.array([network.model for network in seen.networks]),
        "images": np.array([str(image) for image in images]),
    }
    answers = [[sight.answer for sight in own] for own in seen.sights]
    arrays["predictions"] = np.array([[one.label if one else -1 for one in own] for own in answers])
    arrays["predicted_names"] = np.array(
        [[one.name if one else "" for one in own] for own in answers]
    )
    arrays["probabilities"] = np.array(
        [[one.probability if one else np.nan for one in own] for own in answers], dtype=np.float32
    )
    arrays["boxes"] = np.array([[sight.box for sight in own] for own in seen.sights])
    maps = {
        f"{network}/{spot.point}": np.stack([sight.maps[number] for sight in own])
        for network, (spots, own) in enumerate(zip(seen.spots, seen.sights, strict=True))
        for number, spot in enumerate(spots)
    }
    arrays["points"] = np.array(list(maps))
    partial = path.with_name("maps.npz.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays, **maps)  # type: ignore[arg-type]
    partial.rename(path)
    return path
