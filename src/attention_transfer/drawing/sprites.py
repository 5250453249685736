"""Many attention maps in one small picture, and single ones in colour, as ``data:`` addresses."""

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.drawing.scale import Maps

__all__ = ["COLOURS", "Sheet", "colour_table", "coloured", "map_sheet", "photograph"]

COLOURS = "inferno"
"""Perceptually uniform, and told apart by colour-blind people."""

Sheet = dict[str, str | int]
"""``data`` the picture's address, ``height`` and ``width`` of one map in it."""


def map_sheet(looks: Sequence[Maps], most: NDArray[np.floating]) -> Sheet:
    """Maps (N, H, W) of several looks in one grey picture: a row for each look, a column an image.

    Args:
        looks: relative maps.
        most: (N,) the value of each image that is white.
    """
    rows = [
        np.concatenate(list((255 * (maps / most[:, None, None]).clip(0, 1)).round()), axis=1)
        for maps in looks
    ]
    height, width = looks[0].shape[1:]
    picture = Image.fromarray(np.concatenate(rows).astype(np.uint8))
    return {"data": _address(picture, "PNG", optimize=True), "height": height, "width": width}


def coloured(attention: NDArray[np.floating], most: float) -> str:
    """One map in colour, a pixel a cell."""
    shares = (attention / most).clip(0, 1) if most > 0 else np.zeros_like(attention)
    table = np.array(colour_table(), dtype=np.uint8).reshape(256, 3)
    pixels = table[(255 * shares).round().astype(np.uint8)]
    return _address(Image.fromarray(pixels), "PNG", optimize=True)


def photograph(pixels: NDArray[np.uint8]) -> str:
    """An image (H, W, 3): small ones exactly, larger ones as JPEG."""
    picture = Image.fromarray(pixels)
    if max(pixels.shape[:2]) <= 48:
        return _address(picture, "PNG", optimize=True)
    return _address(picture, "JPEG", quality=82)


def colour_table() -> list[int]:
    """Red, green and blue of 256 colours, from no attention to most."""
    colours = mpl.colormaps[COLOURS](np.arange(256))[:, :3]
    table: list[int] = (255 * colours).round().astype(int).ravel().tolist()
    return table


def _address(picture: Image.Image, kind: str, **settings: bool | int) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
