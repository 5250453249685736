"""From an image, in a file or decoded, to pixels: any kind that PIL reads, and nothing else.

torchvision's decoders are not used: crafted PNG files make them crash.
"""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLESPERPIXEL, TILELENGTH, TILEWIDTH

from attention_transfer.config import Interpolation
from attention_transfer.data.deep_images import (
    bands_of_image,
    scaled_bands,
    sixteen_bit_colours,
)
from attention_transfer.data.tiff_files import as_stored, describe_tiff, has_undeclared_band
from attention_transfer.data.unread_files import describe_content
from attention_transfer.errors import first_line
from attention_transfer.preprocessing import PixelRange

__all__ = [
    "MOST_BYTES",
    "MOST_PIXELS",
    "Bands",
    "Box",
    "CorruptImageError",
    "check_channels",
    "decode",
    "file_channels",
    "file_content",
    "image_size",
    "open_image",
    "opened_bands",
    "resized_bands",
    "resized_part",
    "upright_rgb",
    "upright_size",
]

MOST_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded; a larger one is refused by its header."""

MOST_BYTES = 2**29
"""Bytes of memory for decoding one image; one that needs more is refused by its header."""

_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""That PIL keeps of an image, by its mode; 4 in all others, also in RGB."""

_DECODER_BYTES = {"WEBP": 12, "JPEG2000": 12, "AVIF": 8}
"""Bytes that a decoder takes for a pixel beside the result; others decode row by row."""

_DRAFTED = ("JPEG", "MPO")
"""Formats that can be decoded at a part of their size."""

Image.init()
FORMATS = tuple(
    {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"} & Image.OPEN.keys()
)
"""PIL's names of the formats that are opened. Others are not: PIL runs another program on EPS."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


Bands = list[Image.Image]
"""The channels of an image, each an image of one channel, in full precision."""


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message is the reason."""


class Box(NamedTuple):
    """A rectangle in pixels of an image; right and bottom are excluded."""

    left: float
    top: float
    right: float
    bottom: float


@contextmanager
def open_image(source: bytes | Path) -> Iterator[Image.Image]:
    """Open an encoded image, whose header alone is read until its pixels are used.

    Any error inside the block becomes a CorruptImageError; the decoder's warnings are dropped.

    Args:
        source: the bytes of a file, or its path.

    Raises:
        CorruptImageError: it cannot be read, is not an image, is damaged, has more than MOST_PIXELS
            pixels, or would take more than MOST_BYTES of memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = source if isinstance(source, Path) else io.BytesIO(source)
            with Image.open(file, formats=FORMATS) as image:
                layout = as_stored(image)
                if layout is not None:
                    raise _other_layout(layout)
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise CorruptImageError(
                        f"it has {width}x{height} pixels, expected at most {MOST_PIXELS:,}"
                    )
                progressive = 6 if "progressive" in image.info else 0
                needed = width * height * _DECODER_BYTES.get(image.format or "", progressive)
                needed += _bytes_of_tile(image)
                _check_bytes(
                    image, needed if image.format in _DRAFTED else needed + _bytes_of_rgb(image)
                )
                yield image
    except CorruptImageError:
        raise
    except UnidentifiedImageError:
        layout = describe_tiff(source)
        if layout is None:
            raise CorruptImageError(describe_content(source)) from None
        raise _other_layout(layout) from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CorruptImageError(reason or type(error).__name__) from None


def _other_layout(layout: str) -> CorruptImageError:
    return CorruptImageError(
        f"it is {layout}, expected 1 band, or 3 or 4 of 8 or 16 bits; load such files by a "
        "function of your own that gives arrays (C, H, W): --data package.module:factory"
    )


def decode(
    source: bytes | Path,
    size: tuple[int, int],
    box: Box | None = None,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image, or of a part of it, at a size.

    The image is turned as its EXIF data say, 16-bit values are scaled to 8 bits, palettes and CMYK
    are converted, transparent parts are put on white; of an animation it is the first frame.

    Args:
        source: the bytes of a file, or its path.
        size: height and width of the result.
        box: the part to take, in pixels of the upright image; None: all of it.
        interpolation: the filter of resizing, wide enough to prevent aliasing.

    Returns:
        (H, W, 3).

    Raises:
        CorruptImageError: see :func:`open_image`.
    """
    with open_image(source) as image:
        return resized_part(image, size, box, interpolation, draft=True)


def image_size(source: bytes | Path) -> tuple[int, int]:
    """Return height and width of an upright image; its pixels are not decoded.

    Raises:
        CorruptImageError: see :func:`open_image`.
    """
    with open_image(source) as image:
        return upright_size(image)


def file_channels(source: bytes | Path) -> int:
    """Return the channels that the image in a file is brought to: 4 if a TIFF file has a fourth
    band that it does not declare as opacity, else 3.

    Raises:
        CorruptImageError: see :func:`open_image`.
    """
    with open_image(source) as image:
        return 4 if has_undeclared_band(image) else 3


def check_channels(image: Image.Image, channels: int) -> None:
    """Raise a CorruptImageError if an opened image cannot be brought to a number of channels."""
    if channels == 3 and has_undeclared_band(image):
        raise CorruptImageError(
            "it has 4 bands, of which none is declared as opacity (TIFF tag ExtraSamples), "
            "expected 1 or 3 bands; remove the fourth, or give a network of 4 channels images "
            "that all have 4"
        )
    if channels not in (1, 3) and len(image.getbands()) not in (1, channels):
        raise CorruptImageError(
            f"it has {len(image.getbands())} channels, expected {channels}, as the others have"
        )


def resized_part(
    image: Image.Image,
    size: tuple[int, int],
    box: Box | None = None,
    interpolation: Interpolation = "bilinear",
    *,
    draft: bool = False,
) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of a part of an opened image, as :func:`decode` does.

    Args:
        image: opened, whether decoded or not.
        size: height and width of the result.
        box: the part to take, in pixels of the upright image; None: all of it.
        interpolation: the filter of resizing.
        draft: decode a JPEG at a half, a quarter or an eighth of its size where that is fine
            enough. This changes the image: leave it out for one that is used again.
    """
    whole_height, whole_width = upright_size(image)
    box = box or Box(0, 0, whole_width, whole_height)
    if draft:
        scale = min((box.right - box.left) / size[1], (box.bottom - box.top) / size[0])
        divisor = max(power for power in (1, 2, 4, 8) if power == 1 or power <= scale)
        if divisor > 1:
            image.draft(None, (image.width // divisor, image.height // divisor))
    pixels = upright_rgb(image)
    across, down = pixels.width / whole_width, pixels.height / whole_height
    part = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    resample = _FILTERS[interpolation]
    return np.asarray(pixels.resize((size[1], size[0]), resample, part, reducing_gap=3.0))


def opened_bands(image: Image.Image) -> Bands:
    """Return the channels of an opened image, turned as its EXIF data say, in full precision.

    Raises:
        CorruptImageError: they would take more than MOST_BYTES of memory.
    """
    _check_bytes(image, _bytes_of_rgb(image))
    return bands_of_image(image)


def resized_bands(
    bands: Bands,
    size: tuple[int, int],
    box: Box | None = None,
    interpolation: Interpolation = "bilinear",
    pixel_range: PixelRange | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return a part of bands as pixels (H, W, C) at a size.

    Args:
        bands: the channels.
        size: height and width of the result.
        box: the part to take, in pixels; None: all of it.
        interpolation: the filter of resizing.
        pixel_range: the values that become 0 and 1, of bands of more than 8 bits; the result is
            float32 then. None: all bands are of 8 bits, and the result is uint8.
    """
    resample = _FILTERS[interpolation]
    if pixel_range is not None:
        return scaled_bands(bands, pixel_range, size, box, resample)
    height, width = size
    layers = [band.resize((width, height), resample, box, reducing_gap=3.0) for band in bands]
    return np.stack([np.asarray(layer) for layer in layers], axis=2)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened image after it is turned as its EXIF data say."""
    width, height = image.size
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
    return (width, height) if turned else (height, width)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image turned as its EXIF data say, in RGB; see :func:`decode`.

    Raises:
        CorruptImageError: it would take more than MOST_BYTES of memory.
    """
    if image.format in _DRAFTED:
        _check_bytes(image, _bytes_of_rgb(image))
    if _is_turned(image):
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # one channel of 16 or 32 bits, integers or floating-point
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale one channel of 16 or 32 bits to 8 bits, some rows at a time."""
    largest, brightest = 65535, float(image.getextrema()[1])  # type: ignore[arg-type]
    if image.mode == "F":
        largest = 1 if brightest <= 1 else 255
    elif image.mode == "I" and brightest <= 255:
        largest = 255
    result = Image.new("L", image.size)
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(part).astype(np.float32) * np.float32(255 / largest)
        values = np.nan_to_num(values, nan=0.0).clip(0, 255).round()
        result.paste(Image.fromarray(values.astype(np.uint8)), (0, top))
    return result


def _bytes_of_tile(image: Image.Image) -> int:
    """Return the memory of one tile of a TIFF, which can be larger than its image."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TILEWIDTH, 0), tags.get(TILELENGTH, 0)
    bits = max(tags.get(BITSPERSAMPLE, (8,)))
    return int(width * height * tags.get(SAMPLESPERPIXEL, 1) * bits // 8)


def _check_bytes(image: Image.Image, needed: int) -> None:
    if needed > MOST_BYTES:
        raise CorruptImageError(
            f"its {image.width}x{image.height} pixels ({image.mode}) would take "
            f"{needed / 1e6:,.0f} MB to decode, expected at most {MOST_BYTES / 1e6:,.0f} MB; "
            "make it smaller"
        )


def _bytes_of_rgb(image: Image.Image) -> int:
    """Return the memory that an opened image and its copies on the way to RGB or bands take."""
    if sixteen_bit_colours(image):  # two images for their bytes, and bands; or opacity in float32
        return (28 if image.mode == "RGBA" else 16) * image.width * image.height
    stored = _BYTES_A_PIXEL.get(image.mode, 4)
    count = stored
    # PIL decodes a PNG to look for EXIF data behind its pixels; those do not count here.
    if (image.format != "PNG" or "exif" in image.info) and _is_turned(image):
        count += stored
    if image.mode[0] in "IF":
        count += 1
    if image.has_transparency_data:
        count += 8 if image.mode == "RGBA" else 12
    if image.mode != "RGB":
        count += 4
    return count * image.width * image.height


def file_content(image: Any) -> bytes | None:
    """Return the bytes of the file that a sample's image comes as; None: it comes decoded.

    Args:
        image: the bytes, or a dictionary with ``bytes`` or ``path``, as Hugging Face's library
            returns.

    Raises:
        CorruptImageError: the file at the path cannot be read.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or (image.get("path") and _read(Path(image["path"])))
    return image if isinstance(image, bytes) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptImageError(str(error.strerror)) from None
