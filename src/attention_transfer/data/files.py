"""Labelled images in files, decoded when a batch needs them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.decoding import (
    CorruptImageError,
    open_image,
    resized_part,
    upright_size,
)
from attention_transfer.data.images import DecodedImages
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.data.views import Pixels, centre
from attention_transfer.errors import TrainingError

__all__ = ["FileImages"]

READERS = 8
"""Threads that read files for the fingerprint: a disk serves several at once."""

WHOLLY_HASHED = 2**28
"""Bytes of files that are all read for the identity; of more, SOME_HASHED files are."""

SOME_HASHED = 1000


@dataclass(frozen=True)
class FileImages(DecodedImages):
    """Image files under a folder, with their labels."""

    root: Path
    paths: tuple[str, ...]
    """Relative to the root."""
    mask_root: Path | None = None
    """The folder of masks: PNG files under the images' relative paths, white on the object."""

    def subset(self, indices: NDArray[np.int64]) -> "FileImages":
        """Return the images at some indices, in that order."""
        paths = tuple(self.paths[index] for index in indices)
        return replace(self, paths=paths, labels=self.labels[torch.from_numpy(indices)])

    def name(self, index: int) -> str:
        """Return the image's path."""
        return str(self.root / self.paths[index])

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return (n, H, W) bool, True where the masks of the centre crops are white.

        Raises:
            TrainingError: a mask cannot be decoded.
        """
        if self.mask_root is None:
            return None
        return torch.from_numpy(np.stack([self._mask(int(index)) for index in indices]))

    def mask_path(self, index: int) -> Path | None:
        """Return the path of an image's mask; None if it has no mask."""
        if self.mask_root is None:
            return None
        path = (self.mask_root / self.paths[index]).with_suffix(".png")
        return path if path.is_file() else None

    def _mask(self, index: int) -> NDArray[np.bool_]:
        path = self.mask_path(index)
        if path is None:
            return np.zeros(self.size, dtype=bool)
        try:
            with open_image(path) as mask:
                box = centre(upright_size(mask), self.size)
                return resized_part(mask, self.size, box, draft=True)[..., 0] > 127
        except CorruptImageError as error:
            raise TrainingError(
                f"the mask {path} cannot be decoded ({error}); repair or remove it"
            ) from None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every path, label and file; each file is read once for it.

        Raises:
            TrainingError: a file cannot be read.
        """
        digest = hashlib.sha256()
        with ThreadPoolExecutor(READERS) as readers:
            contents = readers.map(self._content_hash, self.paths)
            for path, label, content in zip(
                self.paths, self.labels.tolist(), contents, strict=True
            ):
                digest.update(f"{path}\0{label}\0{content}\n".encode())
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """A hash of every path, label and size, and of the files' contents: of all of them up to
        WHOLLY_HASHED bytes, else of SOME_HASHED files, evenly spread.

        Raises:
            TrainingError: a file cannot be read.
        """
        digest = hashlib.sha256()
        with ThreadPoolExecutor(READERS) as readers:
            sizes = list(readers.map(self._file_size, self.paths))
            for path, label, size in zip(self.paths, self.labels.tolist(), sizes, strict=True):
                digest.update(f"{path}\0{label}\0{size}\n".encode())
            some = np.linspace(0, len(self) - 1, min(len(self), SOME_HASHED)).astype(np.int64)
            chosen = range(len(self)) if sum(sizes) <= WHOLLY_HASHED else some
            for content in readers.map(self._content_hash, [self.paths[index] for index in chosen]):
                digest.update(content.encode())
        return digest.hexdigest()

    def _file_size(self, path: str) -> int:
        try:
            return (self.root / path).stat().st_size
        except OSError as error:
            raise TrainingError(
                f"{self.root / path} can no longer be read: {error.strerror}; repair or remove it"
            ) from None

    def _content_hash(self, path: str) -> str:
        try:
            with (self.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TrainingError(
                f"{self.root / path} can no longer be read: {error.strerror}; repair or remove it"
            ) from None

    def source(self, index: int) -> Path:
        """Return the image's path."""
        return self.root / self.paths[index]

    def _decoded(self, index: int, view: AugmentedView | None) -> Pixels:
        path = self.root / self.paths[index]
        try:
            with open_image(path) as image:
                pixels = self.crop_resize.decode(image, view, index, draft=True)
        except CorruptImageError as error:
            raise TrainingError(
                f"{path} can no longer be decoded ({error}); repair or remove it, then resume"
            ) from None
        return self.crop_resize.finish(pixels, view, index)
