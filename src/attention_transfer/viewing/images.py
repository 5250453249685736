"""The images that maps are computed on, from files or memory, cropped to any part and size."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from attention_transfer.config import Interpolation
from attention_transfer.data.decoding import (
    Box,
    decode,
    image_size,
    resized_part,
    upright_size,
)
from attention_transfer.data.folders import SUFFIXES, files_under
from attention_transfer.errors import InputError

__all__ = ["FileImage", "Images", "SourceImage", "find_image_files", "source_images"]

MOST_FILES = 1_000
"""Image files in one call; more are refused, since pictures are for people."""

Images = Tensor | NDArray[Any] | Image.Image | str | Path | Sequence[Any]
"""What :func:`source_images` accepts."""


class SourceImage(Protocol):
    """An image that maps are computed on."""

    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels.

        Raises:
            CorruptImageError: it is not an image.
        """

    def crop(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """Return a part of the image at a size, (3, H, W) from 0 to 1.

        Args:
            size: height and width of the result in pixels.
            box: the part, in the image's pixels.
            interpolation: how pixels are interpolated.

        Raises:
            CorruptImageError: it is damaged.
        """


class FileImage:
    """An image file, decoded when its pixels are needed."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return image_size(self.path)

    def crop(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """Return a part of the image at a size."""
        return _to_tensor(decode(self.path, size, box, interpolation))


class DecodedImage:
    """An image that PIL has opened."""

    def __init__(self, image: Image.Image, name: str) -> None:
        self.image, self.name = image, name

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return upright_size(self.image)

    def crop(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """Return a part of the image at a size."""
        return _to_tensor(resized_part(self.image, size, box, interpolation))


class TensorImage:
    """Values (3, H, W), which stay exact where the size does not change."""

    def __init__(self, values: Tensor, name: str) -> None:
        self.values, self.name = values, name

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        height, width = self.values.shape[1:]
        return height, width

    def crop(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """Return a part of the image at a size."""
        left, top, right, bottom = (round(edge) for edge in box)
        part = self.values[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        if tuple(part.shape[1:]) == size:
            return part
        return functional.interpolate(part[None], size, mode=interpolation, antialias=True)[0]


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


def source_images(images: Images, names: Sequence[str] | None = None) -> list[SourceImage]:
    """Return images in any form as a list, each with a name.

    Args:
        images: a tensor (N, 3, H, W) or (3, H, W), or an array (H, W, 3), (H, W) or (N, H, W, 3),
            each uint8 or from 0 to 1; a PIL image; a path, folder or pattern; or a list of these.
        names: one for each image; by default file names, or numbers.

    Raises:
        InputError: an unsupported type or shape, no images, or not one name for each image.

    Example:
        >>> [image.name for image in source_images(torch.rand(2, 3, 8, 8))]
        ['image 1', 'image 2']
    """
    sources = list(_sources(images))
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


def _sources(images: Images) -> Iterator[SourceImage]:
    """Yield the images of any supported type."""
    if isinstance(images, str | Path):
        yield from map(FileImage, find_image_files([str(images)]))
    elif isinstance(images, Image.Image):
        yield _from_pil(images)
    elif isinstance(images, Tensor):
        yield from _from_tensor(images)
    elif isinstance(images, np.ndarray):
        yield from _from_array(images)
    elif isinstance(images, list | tuple):
        for image in images:
            yield from _sources(image)
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


def _from_array(pixels: NDArray[Any]) -> Iterator[SourceImage]:
    if pixels.dtype == np.uint16 and pixels.ndim == 2:
        yield DecodedImage(Image.fromarray(pixels), "")
        return
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
        raise InputError(f"got an array {pixels.shape}, expected pixels (H, W, 3)")
    values = torch.from_numpy(np.array(pixels))
    yield from _from_tensor(values.movedim(-1, -3))


def _from_tensor(values: Tensor) -> Iterator[SourceImage]:
    if values.dim() not in (3, 4) or values.shape[-3] not in (1, 3) or 0 in values.shape:
        raise InputError(f"got images {tuple(values.shape)}, expected (N, 3, H, W)")
    values = values.detach().cpu()
    scaled = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    low, high = float(scaled.min()), float(scaled.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"got images with values from {low:.3g} to {high:.3g}, expected 0 to 1 or uint8; give "
            "them before normalization, and normalization=(means, standard deviations)"
        )
    for image in scaled.reshape(-1, *scaled.shape[-3:]):
        yield TensorImage(image.expand(3, -1, -1), "")


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn pixels (H, W, 3) into values (3, H, W) from 0 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
