"""The images that maps are computed on, from files or memory, cropped to any part and size."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.decoding import Box, image_size, open_image, upright_size
from attention_transfer.data.folders import SUFFIXES, files_under
from attention_transfer.data.pixel_ranges import range_of
from attention_transfer.data.views import CropResize, Pixels
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import PixelRange

__all__ = [
    "FileImage",
    "Images",
    "SourceImage",
    "find_image_files",
    "put_on_one_scale",
    "source_images",
]

MOST_FILES = 1_000
"""Image files in one call; more are refused, since pictures are for people."""

Images = Tensor | NDArray[Any] | Image.Image | str | Path | Sequence[Any]
"""What :func:`source_images` accepts."""


class SourceImage(Protocol):
    """An image that maps are computed on."""

    name: str
    pixel_range: PixelRange | None
    """The values that become 0 and 1, of an image of more than 8 bits."""

    @property
    def content(self) -> Any:
        """The path, image of PIL or array; None: values on a scale of 0 to 1."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels.

        Raises:
            CorruptImageError: it is not an image.
        """

    def crop(
        self, size: tuple[int, int], box: Box, interpolation: Interpolation, channels: int = 3
    ) -> Tensor:
        """Return a part of the image at a size, (C, H, W) from 0 to 1.

        Args:
            size: height and width of the result in pixels.
            box: the part, in the image's pixels.
            interpolation: how pixels are interpolated.
            channels: 3 for colours; another number for all channels, which must be as many.

        Raises:
            CorruptImageError: it is damaged.
        """


class FileImage:
    """An image file, decoded when its pixels are needed."""

    pixel_range: PixelRange | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    @property
    def content(self) -> Path:
        """The path of the image file."""
        return self.path

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return image_size(self.path)

    def crop(
        self, size: tuple[int, int], box: Box, interpolation: Interpolation, channels: int = 3
    ) -> Tensor:
        """Return a part of the image at a size."""
        cropping = CropResize(size, interpolation, None, self.pixel_range, channels)
        with open_image(self.path) as image:
            return _to_tensor(cropping.part(image, box, draft=True))


class DecodedImage:
    """An image that PIL has opened."""

    pixel_range: PixelRange | None = None

    def __init__(self, image: Image.Image, name: str) -> None:
        self.image, self.name = image, name

    @property
    def content(self) -> Image.Image:
        """The image in memory."""
        return self.image

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return upright_size(self.image)

    def crop(
        self, size: tuple[int, int], box: Box, interpolation: Interpolation, channels: int = 3
    ) -> Tensor:
        """Return a part of the image at a size."""
        cropping = CropResize(size, interpolation, None, self.pixel_range, channels)
        return _to_tensor(cropping.part(self.image, box))


class TensorImage:
    """Values (C, H, W), which stay exact where the size does not change.

    Args:
        values: uint8, from 0 to 1, or those of more than 8 bits.
        name: of the image.
        scaled: whether they are uint8 or from 0 to 1.
    """

    pixel_range: PixelRange | None = None

    def __init__(self, values: Tensor, name: str, scaled: bool) -> None:
        self.values, self.name, self.scaled = values, name, scaled

    @property
    def content(self) -> NDArray[Any] | None:
        """The values, unless they are on a scale of 0 to 1."""
        return None if self.scaled else self.values.numpy()

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        height, width = self.values.shape[1:]
        return height, width

    def crop(
        self, size: tuple[int, int], box: Box, interpolation: Interpolation, channels: int = 3
    ) -> Tensor:
        """Return a part of the image at a size, with all its channels; grey ones get three."""
        pixel_range = self.pixel_range
        if self.scaled:
            pixel_range = PixelRange(0.0, 1.0) if self.values.is_floating_point() else None
        cropping = CropResize(size, interpolation, None, pixel_range, channels)
        return _to_tensor(cropping.part(self.values.movedim(0, -1).numpy(), box))


def put_on_one_scale(
    images: Sequence[SourceImage], given: PixelRange | None, default: PixelRange | None
) -> PixelRange | None:
    """Give images of more than 8 bits one pixel range, and return it; None: there are none.

    Args:
        images: the images.
        given: by the user; None: the default, or the range that is found from the images.
        default: of a network that was trained with it.

    Raises:
        InputError: a range is given, and all images have 8 bits.
    """
    contents = [image.content for image in images]
    pixel_range = range_of([one for one in contents if one is not None], given, default)
    for image in images:
        image.pixel_range = pixel_range
    return pixel_range


def find_image_files(patterns: Sequence[str]) -> list[Path]:
    """Return the image files that paths, folders and patterns name, each once.

    Args:
        patterns: files; folders, whose images at any depth are taken in the order of their names;
            or patterns with ``*``, ``?``, ``[]`` and ``**``.

    Raises:
        InputError: a pattern matches no file, or there are too many files.
    """
    files = list(dict.fromkeys(path for pattern in patterns for path in _matching_files(pattern)))
    if len(files) > MOST_FILES:
        raise InputError(
            f"got {len(files):,} images, expected at most {MOST_FILES:,}; give fewer, or a pattern "
            "that matches fewer"
        )
    return files


def _matching_files(pattern: str) -> Iterator[Path]:
    """Yield the files that one path, folder or pattern names."""
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        images = [path for path in files_under(Path(pattern)) if path.suffix.lower() in SUFFIXES]
        if not images:
            raise InputError(f"there are no images in the folder {pattern}; give another")
        yield from images
    elif os.path.isfile(pattern):
        yield Path(pattern)
    elif os.path.lexists(pattern):
        raise InputError(f"{pattern} is not a file; expected an image, a folder or a pattern")
    elif glob.has_magic(pattern):
        matches = [] if "\0" in pattern else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in matches if os.path.isfile(path)]
        if not files:
            raise InputError(f"no file matches {pattern!r}; expected images, a folder or a pattern")
        yield from map(Path, files)
    else:
        raise InputError(f"there is no image {pattern}; expected a file, a folder or a pattern")


def source_images(
    images: Images,
    names: Sequence[str] | None = None,
    *,
    channels: Sequence[int] = (3,),
    raw: bool = False,
) -> list[SourceImage]:
    """Return images in any form as a list, each with a name.

    Args:
        images: a tensor (N, C, H, W) or (C, H, W), or an array (H, W, C), (H, W) or (N, H, W, C),
            each uint8, from 0 to 1 or of integers of more than 8 bits; a PIL image; a path, folder
            or pattern; or a list of these.
        names: one for each image; by default file names, or numbers.
        channels: that each network takes. Grey and colour images suit 1 and 3.
        raw: whether floating-point values may lie outside 0 to 1, for a pixel range.

    Raises:
        InputError: an unsupported type or shape, no images, or not one name for each image.

    Example:
        >>> [image.name for image in source_images(torch.rand(2, 3, 8, 8))]
        ['image 1', 'image 2']
    """
    sources = list(_sources(images, _Expected(tuple(channels), raw)))
    if not sources:
        raise InputError("got no images, expected at least one")
    if names is not None and len(names) != len(sources):
        raise InputError(f"got {len(names)} names for {len(sources)} images, expected one for each")
    for number, source in enumerate(sources):
        if names is not None:
            source.name = str(names[number])
        elif not source.name:
            source.name = f"image {number + 1}"
    return sources


class _Expected(NamedTuple):
    """The channels and values that tensors and arrays of images may have."""

    channels: tuple[int, ...]
    """Numbers of channels, one for each network."""
    raw: bool
    """Whether floating-point values are not checked."""

    def takes(self, channels: int) -> bool:
        """Return whether all networks take images of a number of channels."""
        return all(channels == count or {channels, count} <= {1, 3} for count in self.channels)

    @property
    def stack(self) -> int | None:
        """The number of channels other than those of grey and colour images, if there is one."""
        return next((count for count in self.channels if count not in (1, 3)), None)

    def __str__(self) -> str:
        counts = sorted({3 if count == 1 else count for count in self.channels})
        return " and ".join(f"(N, {count}, H, W)" for count in counts)


def _sources(images: Images, expected: _Expected) -> Iterator[SourceImage]:
    """Yield the images of any supported type."""
    if isinstance(images, str | Path):
        yield from map(FileImage, find_image_files([str(images)]))
    elif isinstance(images, Image.Image):
        yield _from_pil(images)
    elif isinstance(images, Tensor):
        yield from _from_tensor(images, expected)
    elif isinstance(images, np.ndarray):
        yield from _from_array(images, expected)
    elif isinstance(images, list | tuple):
        for image in images:
            yield from _sources(image, expected)
    else:
        raise InputError(
            f"got a {type(images).__name__}, expected images: a tensor (N, 3, H, W), an array "
            "(H, W, 3), a PIL image, a path, or a list of these"
        )


def _from_pil(image: Image.Image) -> SourceImage:
    try:
        image.load()
    except Exception as error:
        raise InputError(f"the image cannot be read ({error}); give an intact one") from error
    path = getattr(image, "filename", "")
    return DecodedImage(image, os.path.basename(path) if isinstance(path, str) else "")


def _from_array(pixels: NDArray[Any], expected: _Expected) -> Iterator[SourceImage]:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    stack = expected.stack
    channels_first = (
        pixels.ndim in (3, 4) and pixels.shape[-3] == stack and pixels.shape[-1] != stack
    )
    if not channels_first and (pixels.ndim not in (3, 4) or not expected.takes(pixels.shape[-1])):
        raise InputError(f"got an array {pixels.shape}, expected pixels (H, W, {stack or 3})")
    values = torch.from_numpy(np.array(pixels))
    yield from _from_tensor(values if channels_first else values.movedim(-1, -3), expected)


def _from_tensor(values: Tensor, expected: _Expected) -> Iterator[SourceImage]:
    if values.dim() not in (3, 4) or not expected.takes(values.shape[-3]) or 0 in values.shape:
        raise InputError(f"got images {tuple(values.shape)}, expected {expected}")
    values = values.detach().cpu()
    scaled = values.is_floating_point() or values.dtype in (torch.uint8, torch.bool)
    if values.is_floating_point():
        values = values.float()
        low, high = float(values.min()), float(values.max())
        if expected.raw:
            scaled = False
        elif not (low >= 0 and high <= 1):
            raise InputError(
                f"got images with values from {low:.3g} to {high:.3g}, expected 0 to 1 or uint8; "
                "give them before normalization, and normalization=(means, standard deviations)"
            )
    for image in values.reshape(-1, *values.shape[-3:]):
        yield TensorImage(image, "", scaled)


def _to_tensor(pixels: Pixels) -> Tensor:
    """Turn pixels (H, W, C) into values (C, H, W) from 0 to 1."""
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)
    return values / 255 if pixels.dtype == np.uint8 else values
