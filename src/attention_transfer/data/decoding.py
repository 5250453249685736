"""From an image, in a file or decoded, to pixels: any kind, by PIL, and nothing that is not one.

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
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.errors import first_line

__all__ = [
    "MOST_PIXELS",
    "Box",
    "BrokenImageError",
    "as_pil",
    "decode",
    "encoded",
    "fitted",
    "image_size",
    "read",
    "turned_size",
]

MOST_PIXELS = 100_000_000
"""Of one image; a larger one is refused before it is decoded."""

Image.init()
FORMATS = tuple(
    {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"} & Image.OPEN.keys()
)
"""PIL's names. Others (EPS, which is run by another program) are not opened."""


_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BrokenImageError(Exception):
    """A file that is no whole image, and why."""


class Box(NamedTuple):
    """A part of an image in its own pixels, right and bottom excluded."""

    left: float
    top: float
    right: float
    bottom: float


def decode(
    content: bytes,
    size: tuple[int, int],
    box: Box | None = None,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """The pixels of an encoded image.

    As it is meant to be seen: turned as its EXIF data say, 16-bit values scaled to 8, palettes and
    CMYK converted, transparent parts on white, the first frame of an animation.

    Args:
        content: of the file.
        size: height and width of the result.
        box: the part to take; None: all of it. In pixels of the turned image.
        interpolation: the filter of resizing; it is wide enough not to alias.

    Returns:
        (H, W, 3).

    Raises:
        BrokenImageError: it is no image, is damaged, or has more than MOST_PIXELS pixels.
    """
    with _told(), _opened(content) as image:
        whole = turned_size(image)
        box = box or Box(0, 0, whole[1], whole[0])
        fineness = min((box.right - box.left) / size[1], (box.bottom - box.top) / size[0])
        return fitted(image, size, box, interpolation, fineness)


def fitted(
    image: Image.Image,
    size: tuple[int, int],
    box: Box,
    interpolation: Interpolation = "bilinear",
    fineness: float = 1.0,
) -> NDArray[np.uint8]:
    """The same of an image that PIL has opened.

    Args:
        image: opened, and perhaps decoded.
        size: height and width of the result.
        box: the part to take, in pixels of the turned image.
        interpolation: the filter of resizing.
        fineness: pixels of the image for each of the result's. A JPEG is decoded at a half, a
            quarter or an eighth of its size where that is enough, which changes the image: leave
            it at 1 for an image that is to be used again.
    """
    whole_height, whole_width = turned_size(image)
    _draft(image, fineness)
    pixels = _as_rgb(ImageOps.exif_transpose(image))
    across, down = pixels.width / whole_width, pixels.height / whole_height
    part = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    resample = _FILTERS[interpolation]
    return np.asarray(pixels.resize((size[1], size[0]), resample, part, reducing_gap=3.0))


def image_size(source: bytes | Path) -> tuple[int, int]:
    """Height and width of an image as it is meant to be seen; its pixels are not read.

    Args:
        source: what a file holds, or its path, of which the beginning is read.

    Raises:
        BrokenImageError: it is no image, or has more than MOST_PIXELS pixels.
    """
    with _told(), _opened(source) as image:
        return turned_size(image)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a decoder raises, as a BrokenImageError; what it warns of is not passed on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError("it is no image") from None
    except Exception as error:
        raise BrokenImageError(first_line(error)) from None


def _opened(source: bytes | Path) -> Image.Image:
    file = source if isinstance(source, Path) else io.BytesIO(source)
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BrokenImageError(f"it has {width}x{height} pixels, expected at most {MOST_PIXELS:,}")
    return image


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image as it is meant to be seen."""
    width, height = image.size
    sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if sideways else (height, width)


def _draft(image: Image.Image, fineness: float) -> None:
    """Has a JPEG decoded at a half, a quarter or an eighth of its size where that is enough."""
    step = max(power for power in (1, 2, 4, 8) if power == 1 or power <= fineness)
    if step > 1:
        image.draft(None, (image.width // step, image.height // step))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # one channel of 16 or 32 bits, integers or not
        values = np.asarray(image).astype(np.float64)
        most = 1 if image.mode == "F" and values.max() <= 1 else 255
        if image.mode != "F" and (image.mode != "I" or values.max() > 255):
            most = 65535
        image = Image.fromarray((values * (255 / most)).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read(path: Path) -> bytes:
    """A file's content.

    Raises:
        BrokenImageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenImageError(str(error.strerror)) from None


def encoded(image: Any) -> bytes | None:
    """What the file holds, of an image that is not decoded yet."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or (image.get("path") and read(Path(image["path"])))
    return image if isinstance(image, bytes) else None


def as_pil(image: Any) -> Image.Image:
    """An image of any of the kinds that datasets give decoded, as PIL's.

    Raises:
        TypeError: it is none of them.
        ValueError: its numbers are not those of an image.

    Example:
        >>> as_pil(torch.ones(3, 4, 6)).size
        (6, 4)
    """
    if isinstance(image, Image.Image):
        return image
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise TypeError(
            f"got a {type(image).__name__}, expected an image of PIL, an array (H, W, 3), a tensor "
            "(3, H, W) or the bytes of a file"
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise TypeError(f"got an array {array.shape}, expected (H, W), (H, W, 3) or (3, H, W)")
    pixels = _as_bytes(array)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers from 0 to 255; floating-point ones come from 0 to 1, of 16 bits from 0 to 65535."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    most = 65535 if array.dtype == np.uint16 else 255
    if np.issubdtype(array.dtype, np.floating):
        most = 1
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if not (low >= 0 and high <= most):
        raise ValueError(
            f"its {array.dtype} values go from {low:.4g} to {high:.4g}, expected 0 to {most}; give "
            "images as they are, before they are normalised"
        )
    return np.rint(array.astype(np.float64) * (255 / most)).astype(np.uint8)
