"""Images of more than 8 bits, and of any number of channels: read, scaled and resized by band.

PIL holds one band of 16 or 32 bits, and colour of 8 bits alone. Such images are therefore lists of
bands, each an image of PIL of its own, and become float32 without a step of 8 bits in between.
"""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from attention_transfer.data.tiff_files import as_stored, unsigned_values
from attention_transfer.preprocessing import EIGHT_BITS, PixelRange

__all__ = [
    "Extent",
    "array_of",
    "bands_of_array",
    "bands_of_image",
    "extent_of",
    "found_range",
    "is_deep",
    "is_deep_array",
    "may_be_deep",
    "on_white",
    "scaled_bands",
    "sixteen_bit_colours",
]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, the last two excluded."""

ROWS_AT_ONCE = 2**20
"""Pixels whose values are converted at once, to bound memory."""

_PNG = b"\x89PNG\r\n\x1a\n"
_DEEP_MAGIC = (b"II", b"MM", b"P2", b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""First bytes of the other formats with more than 8 bits: TIFF, PGM, PPM and JPEG 2000."""

_EIGHT_BIT_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".avif", ".pbm")
)


class Extent(NamedTuple):
    """The smallest and the largest finite value in images."""

    low: float
    high: float
    whole: bool
    """Whether the values are integers."""
    eight_bits: bool = False
    """Whether the values are those of 8 bits, stored in a larger type."""


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image has more than 8 bits a channel."""
    return image.mode[0] in "IF" or sixteen_bit_colours(image)


def is_deep_array(array: NDArray[Any]) -> bool:
    """Return whether an array holds other values than 8 bits."""
    return array.dtype not in (np.uint8, np.bool_)


def may_be_deep(source: bytes | Path) -> bool:
    """Return False if an image has 8 bits by its name or first bytes; True is to be checked."""
    if isinstance(source, Path):
        if source.suffix.lower() in _EIGHT_BIT_SUFFIXES:
            return False
        with open(source, "rb", buffering=0) as file:
            start = file.read(26)
    else:
        start = source[:26]
    if start.startswith(_PNG):
        return start[24:25] == b"\x10"
    return start.startswith(_DEEP_MAGIC)


def bands_of_image(image: Image.Image) -> list[Image.Image]:
    """Return the bands of an opened image, turned as its EXIF data say, in full precision."""
    if not sixteen_bit_colours(image):
        return list(unsigned_values(image, ImageOps.exif_transpose(image)).split())
    low_bytes = _with_low_bytes(image)
    high, low = ImageOps.exif_transpose(image), ImageOps.exif_transpose(low_bytes)
    bands = []
    for channel in high.getbands():
        values = np.asarray(high.getchannel(channel)).astype(np.uint16)
        values <<= 8
        values |= np.asarray(low.getchannel(channel))
        bands.append(Image.fromarray(values))
    return bands


def sixteen_bit_colours(image: Image.Image) -> bool:
    """Return whether PIL would keep the higher bytes alone of an image's 16-bit colours.

    It is known until the image's pixels are decoded, as :func:`PIL.Image.Image.getexif` may do.
    """
    modes = [_raw_mode(tile) for tile in getattr(image, "tile", ())]
    return (
        image.mode in ("RGB", "RGBA")
        and bool(modes)
        and all(mode[:-1] in ("RGB;16", "RGBA;16") for mode in modes)
    )


def _raw_mode(tile: Any) -> str:
    """Return the layout of the bytes in a part of a file."""
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    return str(arguments[0]) if arguments else ""


def _with_low_bytes(image: Image.Image) -> Image.Image:
    """Open an image again, such that PIL keeps the lower byte of each 16-bit value.

    PIL takes the first or the second byte by the byte order of the file. With the other byte order
    it takes the other byte.
    """
    name, file = getattr(image, "filename", ""), getattr(image, "fp", None)
    if name:
        again: Any = Image.open(name, formats=[image.format or ""])
    else:
        assert file is not None
        position = file.tell()
        file.seek(0)
        again = Image.open(io.BytesIO(file.read()), formats=[image.format or ""])
        file.seek(position)
    as_stored(again)
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    tiles = []
    for tile in again.tile:
        mode = _raw_mode(tile)
        mode = mode[:-1] + swapped[mode[-1]]
        arguments = (mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode
        tiles.append(tile._replace(args=arguments))
    again.tile = tiles
    return again  # type: ignore[no-any-return]


def array_of(image: Any) -> NDArray[Any] | None:
    """Return the array of an image that a data set gives as an array or a tensor, else None."""
    if isinstance(image, Tensor):
        return image.detach().cpu().numpy()
    return image if isinstance(image, np.ndarray) else None


def bands_of_array(array: NDArray[Any], channels: int | None = None) -> list[Image.Image]:
    """Return the bands of an array (C, H, W), (H, W, C) or (H, W).

    Args:
        array: of any numbers.
        channels: tell which axis C is, where that is open; else it is the last of 1, 3 or 4, or
            the shorter one of the first and the last.

    Raises:
        TypeError: it has another number of axes, or none of its axes is C.
    """
    if array.ndim == 2:
        array = array[None]
    elif array.ndim != 3 or 0 in array.shape:
        raise TypeError(f"got an array {array.shape}, expected (C, H, W), (H, W, C) or (H, W)")
    elif _channels_last(array.shape, channels):
        array = array.transpose(2, 0, 1)
    return [Image.fromarray(np.ascontiguousarray(_as_pils(band))) for band in array]


def _channels_last(shape: Sequence[int], channels: int | None) -> bool:
    first, last = shape[0], shape[2]
    if channels is not None and (first == channels) != (last == channels):
        return last == channels
    usual = (1, 3, 4)
    return last in usual or (first not in usual and last < first)


def _as_pils(band: NDArray[Any]) -> NDArray[Any]:
    """Convert a band to a type that PIL has: of 8 or 16 bits without sign, int32 or float32."""
    if band.dtype == np.bool_:
        return band.astype(np.uint8) * np.uint8(255)
    if band.dtype in (np.uint8, np.uint16):
        return band.astype(band.dtype.newbyteorder("="))
    if np.issubdtype(band.dtype, np.integer):
        limits = np.iinfo(np.int32)
        if band.size and limits.min <= int(band.min()) and int(band.max()) <= limits.max:
            return band.astype(np.int32)
    return band.astype(np.float32)


def _values(band: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the values of a band, some rows at a time, each with the number of the first row."""
    rows = max(1, ROWS_AT_ONCE // band.width)
    for top in range(0, band.height, rows):
        yield top, np.asarray(band.crop((0, top, band.width, min(top + rows, band.height))))


def extent_of(bands: Iterable[Image.Image]) -> Extent | None:
    """Return the extent of an image's values; None: none of them is finite."""
    extents = []
    for band in bands:
        for _, values in _values(band):
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high = float(finite.min()), float(finite.max())
                extents.append(Extent(low, high, band.mode != "F", _of_eight_bits(finite)))
    if not extents:
        return None
    lows, highs, whole, eight_bits = zip(*extents, strict=True)
    return Extent(min(lows), max(highs), all(whole), all(eight_bits))


def _of_eight_bits(values: NDArray[Any]) -> bool:
    """Return whether values are those of 8 bits: 16-bit multiples of 257, 255ths, or 0 to 255."""
    if values.dtype.kind == "f":
        levels = values * 255.0
        in_range = bool(values.min() >= 0 and values.max() <= 1)
        return in_range and bool((np.abs(levels - np.rint(levels)) < 1e-3).all())
    if values.dtype.itemsize == 2:
        return not (values % 257).any()
    return bool(values.min() >= 0 and values.max() <= 255)


def found_range(extents: Sequence[Extent]) -> PixelRange:
    """Return one range for images of these extents.

    Integers that are not negative have that of their bits, at least 8; numbers from 0 to 1 have 0
    to 1; all others that of their smallest and largest value.

    Example:
        >>> str(found_range([Extent(0, 300, True), Extent(7, 3999, True)]))
        '0:4095'
        >>> str(found_range([Extent(-1024, 3071, True)])), str(found_range([Extent(0, 9.5, False)]))
        ('-1024:3071', '0:9.5')
    """
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    if low >= 0 and all(one.whole for one in extents):
        return PixelRange(0.0, float(2 ** max(8, int(high).bit_length()) - 1))
    if low >= 0 and high <= 1:
        return PixelRange(0.0, 1.0)
    return PixelRange(low, high if high > low else low + 1)


def scaled_bands(
    bands: Sequence[Image.Image],
    pixel_range: PixelRange,
    size: tuple[int, int] | None = None,
    box: Box | None = None,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> NDArray[np.float32]:
    """Return the values of bands (H, W, C), scaled from a range to 0 to 1, at a size.

    Args:
        bands: of one size. Those of 8 bits have the range 0 to 255, whatever that of the others is.
        pixel_range: the values that become 0 and 1. What is outside of it becomes the nearer one,
            what is no number becomes 0.
        size: height and width of the result; None: those of the bands.
        box: the part to take, in pixels; None: all of it.
        resample: the filter of resizing.
    """
    layers = []
    for band in bands:
        scaled = _scaled(band, EIGHT_BITS if band.mode == "L" else pixel_range)
        if size is not None:
            scaled = scaled.resize((size[1], size[0]), resample, box, reducing_gap=3.0)
        layers.append(np.asarray(scaled))
    return np.stack(layers, axis=2)


def on_white(bands: Sequence[Image.Image], pixel_range: PixelRange) -> list[Image.Image]:
    """Put colours on white where the last band, their opacity, is low; all have the range 0 to 1.

    The largest opacity is that of the band's type: 255, 65535, or 1 of floating-point numbers.
    """
    opaque = {"F": 1.0, "I;16": 65535.0}.get(bands[-1].mode, 255.0)
    opacity = scaled_bands(bands[-1:], PixelRange(0, opaque))[..., 0]
    colours = []
    for band in bands[:-1]:
        colour = scaled_bands([band], pixel_range)[..., 0]
        colour -= 1
        colour *= opacity
        colour += 1
        colours.append(Image.fromarray(colour))
    return colours


def _scaled(band: Image.Image, pixel_range: PixelRange) -> Image.Image:
    result = Image.new("F", band.size)
    for top, values in _values(band):
        exact = (values.astype(np.float64) - pixel_range.low) / pixel_range.span
        scaled = np.nan_to_num(exact, nan=0.0).clip(0, 1).astype(np.float32)
        result.paste(Image.fromarray(scaled), (0, top))
    return result
