"""Labelled images in files, decoded when they are wanted."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.decoding import BrokenImageError, decode, image_size, read
from attention_transfer.data.images import AugmentedView
from attention_transfer.data.views import CropFlip, centre
from attention_transfer.errors import TrainingError

__all__ = ["FileImages"]

READERS = 8
"""Threads that read files for their fingerprint: a disk serves several at once."""


@dataclass(frozen=True)
class FileImages:
    """Image files under a folder, with their labels."""

    root: Path
    paths: tuple[str, ...]
    """Relative to the folder."""
    labels: Tensor
    size: tuple[int, int]
    """Height and width of what is made of them."""
    recipe: CropFlip = field(default_factory=CropFlip)
    interpolation: Interpolation = "bilinear"
    mask_root: Path | None = None
    """Of masks: PNG files, white where the object is, under the images' own paths."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def provenance(self) -> str:
        """The recipe, and the size it ends at."""
        height, width = self.size
        return f"{self.recipe}, {self.interpolation} to {height}x{width}"

    def subset(self, indices: NDArray[np.int64]) -> "FileImages":
        """The images at some indices, in that order."""
        paths = tuple(self.paths[index] for index in indices)
        return replace(self, paths=paths, labels=self.labels[torch.from_numpy(indices)])

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "FileImages":
        """The same, decoded to another height and width."""
        return replace(self, size=size, interpolation=interpolation)

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.root / self.paths[index])

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a random crop of each image, or without a view its middle.

        Raises:
            TrainingError: a file cannot be decoded, though it could when it was checked.
        """
        return torch.from_numpy(np.stack([self._one(int(index), view) for index in indices]))

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """(n, H, W) bool: the white parts of the masks, as the images are judged.

        Raises:
            TrainingError: a mask cannot be decoded.
        """
        if self.mask_root is None:
            return None
        return torch.from_numpy(np.stack([self._mask(int(index)) for index in indices]))

    def mask_path(self, index: int) -> Path | None:
        """Where an image's mask is, if it has one."""
        if self.mask_root is None:
            return None
        path = (self.mask_root / self.paths[index]).with_suffix(".png")
        return path if path.is_file() else None

    def _mask(self, index: int) -> NDArray[np.bool_]:
        path = self.mask_path(index)
        if path is None:
            return np.zeros(self.size, dtype=bool)
        try:
            content = read(path)
            box = centre(image_size(content), self.size)
            return decode(content, self.size, box)[..., 0] > 127
        except BrokenImageError as error:
            raise TrainingError(
                f"the mask {path} cannot be decoded ({error}); mend or remove it"
            ) from None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every path, label and file, which are read for it once.

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

    def _content_hash(self, path: str) -> str:
        try:
            with (self.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TrainingError(
                f"{self.root / path} can no longer be read: {error.strerror}; mend or remove it"
            ) from None

    def _one(self, index: int, view: AugmentedView | None) -> NDArray[np.uint8]:
        path = self.root / self.paths[index]
        try:
            content = read(path)
            whole = image_size(content)
            if view is None:
                return decode(content, self.size, centre(whole, self.size), self.interpolation)
            box = self.recipe.box(whole, self.size, view, index)
            cropped = decode(content, self.size, box, self.interpolation)
        except BrokenImageError as error:
            raise TrainingError(
                f"{path} can no longer be decoded ({error}); mend or remove it, then resume"
            ) from None
        return self.recipe.finish(cropped, view, index)
