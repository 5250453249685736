"""Images to look at: in files or in memory, cut and brought to any size."""

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

__all__ = ["FilePicture", "Images", "Picture", "find_files", "pictures_of"]

MOST_FILES = 1_000
"""Of one look: pictures are for people."""

Images = Tensor | NDArray[Any] | Image.Image | str | Path | Sequence[Any]
"""What :func:`pictures_of` takes."""


class Picture(Protocol):
    """An image to look at."""

    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width.

        Raises:
            CorruptImageError: it is none.
        """

    def part(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """A part of it at a size, (3, H, W) on a scale of 0 to 1.

        Raises:
            CorruptImageError: it is damaged.
        """


class FilePicture:
    """An image file, decoded when it is wanted."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return image_size(self.path)

    def part(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """A part of it at a size."""
        return _as_tensor(decode(self.path, size, box, interpolation))


class PixelPicture:
    """An image that PIL holds."""

    def __init__(self, image: Image.Image, name: str) -> None:
        self.image, self.name = image, name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return upright_size(self.image)

    def part(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """A part of it at a size."""
        return _as_tensor(resized_part(self.image, size, box, interpolation))


class TensorPicture:
    """Values (3, H, W), which stay as they are where no other size is wanted."""

    def __init__(self, values: Tensor, name: str) -> None:
        self.values, self.name = values, name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.values.shape[1:]
        return height, width

    def part(self, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Tensor:
        """A part of it at a size."""
        left, top, right, bottom = (round(edge) for edge in box)
        cut = self.values[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        if tuple(cut.shape[1:]) == size:
            return cut
        return functional.interpolate(cut[None], size, mode=interpolation, antialias=True)[0]


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and patterns mean, each once.

    Args:
        patterns: files; folders, of which every image at any depth is taken, in the order of their
            names; or patterns with ``*``, ``?``, ``[]`` and ``**``.

    Raises:
        InputError: one of them means no file, or all together too many.
    """
    files = list(dict.fromkeys(path for pattern in patterns for path in _files_of(pattern)))
    if len(files) > MOST_FILES:
        raise InputError(
            f"got {len(files):,} images, expected at most {MOST_FILES:,}; give fewer, or a pattern "
            "that matches fewer"
        )
    return files


def _files_of(pattern: str) -> Iterator[Path]:
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        found = [path for path in files_under(Path(pattern)) if path.suffix.lower() in SUFFIXES]
        if not found:
            raise InputError(f"there are no images in the folder {pattern}; give another")
        yield from found
    elif os.path.isfile(pattern):
        yield Path(pattern)
    elif os.path.lexists(pattern):
        raise InputError(f"{pattern} is no file; expected an image, a folder or a pattern")
    elif glob.has_magic(pattern):
        matches = [] if "\0" in pattern else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in matches if os.path.isfile(path)]
        if not files:
            raise InputError(f"no file matches {pattern!r}; expected images, a folder or a pattern")
        yield from map(Path, files)
    else:
        raise InputError(f"there is no image {pattern}; expected a file, a folder or a pattern")


def pictures_of(images: Images, names: Sequence[str] | None = None) -> list[Picture]:
    """Images as people have them.

    Args:
        images: a tensor (N, 3, H, W) or (3, H, W), or an array (H, W, 3), (H, W) or (N, H, W, 3),
            each uint8 or on a scale of 0 to 1; PIL's image; a path, folder or pattern; or a list
            of such.
        names: what to call them.

    Raises:
        InputError: something else, no image, or as many names as there are no images.

    Example:
        >>> [picture.name for picture in pictures_of(torch.rand(2, 3, 8, 8))]
        ['image 1', 'image 2']
    """
    pictures = list(_pictures(images))
    if not pictures:
        raise InputError("got no images, expected at least one")
    if names is not None and len(names) != len(pictures):
        raise InputError(f"got {len(names)} names for {len(pictures)} images, expected as many")
    for number, picture in enumerate(pictures):
        if names is not None:
            picture.name = str(names[number])
        elif not picture.name:
            picture.name = f"image {number + 1}"
    return pictures


def _pictures(images: Images) -> Iterator[Picture]:
    if isinstance(images, str | Path):
        yield from map(FilePicture, find_files([str(images)]))
    elif isinstance(images, Image.Image):
        yield _of_pil(images)
    elif isinstance(images, Tensor):
        yield from _of_tensor(images)
    elif isinstance(images, np.ndarray):
        yield from _of_array(images)
    elif isinstance(images, list | tuple):
        for image in images:
            yield from _pictures(image)
    else:
        raise InputError(
            f"got a {type(images).__name__}, expected images: a tensor (N, 3, H, W), an array "
            "(H, W, 3), PIL's image, a path, or a list of such"
        )


def _of_pil(image: Image.Image) -> Picture:
    try:
        image.load()
    except Exception as error:
        raise InputError(f"the image cannot be read ({error}); give a whole one") from error
    path = getattr(image, "filename", "")
    return PixelPicture(image, os.path.basename(path) if isinstance(path, str) else "")


def _of_array(pixels: NDArray[Any]) -> Iterator[Picture]:
    if pixels.dtype == np.uint16 and pixels.ndim == 2:
        yield PixelPicture(Image.fromarray(pixels), "")
        return
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
        raise InputError(f"got an array {pixels.shape}, expected pixels (H, W, 3)")
    values = torch.from_numpy(np.array(pixels))
    yield from _of_tensor(values.movedim(-1, -3))


def _of_tensor(values: Tensor) -> Iterator[Picture]:
    if values.dim() not in (3, 4) or values.shape[-3] not in (1, 3) or 0 in values.shape:
        raise InputError(f"got images {tuple(values.shape)}, expected (N, 3, H, W)")
    values = values.detach().cpu()
    scaled = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    low, high = float(scaled.min()), float(scaled.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"got images with values from {low:.3g} to {high:.3g}, expected 0 to 1 or uint8; give "
            "them before they are normalised, and normalization=(means, standard deviations)"
        )
    for image in scaled.reshape(-1, *scaled.shape[-3:]):
        yield TensorPicture(image.expand(3, -1, -1), "")


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) on a scale of 0 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
