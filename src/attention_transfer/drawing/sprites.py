"""Images and maps for the report page, encoded as ``data:`` addresses."""

import base64
import io
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.drawing.scale import Maps, Pixels, check_axes, colourize, fractions

__all__ = ["Sprite", "coloured_map", "encode_image", "map_sprite"]

LOSSLESS_SIDE = 48
"""Pixels along the longer side up to which an image is stored exactly."""


class Sprite(TypedDict):
    """Many maps of one size in one grey picture, which the page cuts out and colours."""

    data: str
    """The picture's address."""
    height: int
    """Of one map, in pixels."""
    width: int
    """Of one map, in pixels."""


def map_sprite(maps_by_epoch: Sequence[Maps], limits: NDArray[np.floating]) -> Sprite:
    """Put maps into one grey picture: a row for each epoch, a column for each image.

    Args:
        maps_by_epoch: the maps (N, H, W) of each epoch.
        limits: (N,) the value of each image that becomes white.
    """
    for maps in maps_by_epoch:
        check_axes(maps, "N", "H", "W")
    rows = [
        np.concatenate(list((255 * fractions(maps, limits)).round()), axis=1)
        for maps in maps_by_epoch
    ]
    height, width = maps_by_epoch[0].shape[1:]
    picture = Image.fromarray(np.concatenate(rows).astype(np.uint8))
    return {"data": _address(picture, "PNG", optimize=True), "height": height, "width": width}


def coloured_map(attention: NDArray[np.floating], limit: float) -> str:
    """Encode one map (H, W) in colour, a pixel for each position.

    Args:
        attention: the map.
        limit: the value of the brightest colour.
    """
    check_axes(attention, "H", "W")
    picture = Image.fromarray(colourize(fractions(attention, limit)))
    return _address(picture, "PNG", optimize=True)


def encode_image(pixels: Pixels) -> str:
    """Encode an image (H, W, 3): a small one exactly, a larger one as JPEG."""
    picture = Image.fromarray(pixels)
    if max(pixels.shape[:2]) <= LOSSLESS_SIDE:
        return _address(picture, "PNG", optimize=True)
    return _address(picture, "JPEG", quality=82)


def _address(picture: Image.Image, kind: str, **options: bool | int) -> str:
    """Return a picture as a ``data:`` address."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
