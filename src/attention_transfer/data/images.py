"""Labelled images, their splits and their views."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.randomness import integers, uniform
from attention_transfer.functional.measures import box_masks
from attention_transfer.preprocessing import Preprocessing

__all__ = [
    "Augmentation",
    "DataSet",
    "ImageSet",
    "Images",
    "AugmentedView",
]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By channel, on a scale of 0 to 1: what photographs are normalised by."""


class AugmentedView(NamedTuple):
    """Which of a sample's augmented views; training takes the epoch's number."""

    data_seed: int
    number: int


class Images(Protocol):
    """Labelled images that batches are made of, in memory or in files."""

    @property
    def labels(self) -> Tensor:
        """(N,) class indices."""

    @property
    def fingerprint(self) -> str:
        """A hash of the images and labels: what else is in their place has another."""

    @property
    def provenance(self) -> str:
        """How views are made; with the fingerprint, all that a (data seed, number) leaves open."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what :meth:`pixels` gives."""

    def __len__(self) -> int: ...

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """The images at some indices, in that order."""

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> Self:
        """The same, decoded to another height and width; images in memory stay as they are."""

    def name(self, index: int) -> str:
        """What to call a sample in front of people."""

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a view of each image, or without one the image as it is judged."""

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """(n, H, W) bool: where each image's object is, as it is judged; none of it where that is
        not known. None if it is known of no image.
        """


@dataclass(frozen=True)
class Augmentation:
    """Random crops out of the image padded by reflection, and horizontal flips of half of them."""

    pad: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """One view of each image: a function of the view and the sample's index alone.

        Args:
            images: (N, H, W, C) uint8.
            indices: (N,) the samples' indices in their set.
            view: which one.
        """
        height, width = images.shape[1:3]
        key = view.data_seed, view.number, indices
        tops = integers(-self.pad, self.pad, "crop top", *key)
        lefts = integers(-self.pad, self.pad, "crop left", *key)
        rows = _reflected(tops[:, None] + np.arange(height), height)
        columns = _reflected(lefts[:, None] + np.arange(width), width)
        if self.flip:
            flipped = uniform("flip", *key) < 0.5
            columns[flipped] = columns[flipped, ::-1]
        whole = images.contiguous().numpy()
        pixels = whole.view(f"V{whole.shape[3]}").reshape(-1)  # an element has all its channels
        lines = height * np.arange(len(whole))[:, None] + rows
        places = width * lines[:, :, None] + columns[:, None, :]
        return torch.from_numpy(pixels.take(places).view(np.uint8).reshape(whole.shape))


@dataclass(frozen=True)
class ImageSet:
    """Images (N, H, W, 3) as uint8 and labels (N,), with each object's box (N, 4) where known:
    left, top, right, bottom in pixels, right and bottom excluded. All of it in memory.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    augmentation: Augmentation = Augmentation()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def provenance(self) -> str:
        """The augmentation."""
        return str(self.augmentation)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.images.shape[1:3]
        return height, width

    def subset(self, indices: NDArray[np.int64]) -> "ImageSet":
        """The images at some indices, in that order."""
        chosen = torch.from_numpy(indices)
        boxes = None if self.boxes is None else self.boxes[chosen]
        return ImageSet(self.images[chosen], self.labels[chosen], boxes, self.augmentation)

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "ImageSet":
        """The same: it is in memory."""
        return self

    def name(self, index: int) -> str:
        """Its number."""
        return f"sample {index}"

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a view of each image, or the image as it is."""
        chosen = self.images.index_select(0, torch.from_numpy(indices))
        return chosen if view is None else self.augmentation(chosen, indices, view)

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """(n, H, W) bool: the insides of the boxes, where they are known."""
        if self.boxes is None:
            return None
        return box_masks(self.boxes[torch.from_numpy(indices)], self.size)

    @property
    def fingerprint(self) -> str:
        """A hash of every pixel and label."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """What a network is trained and judged on. Test images are never trained on or chosen by."""

    name: str
    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notices: tuple[str, ...] = ()
    """What a user should know of how the images were read, such as which were left out."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height, width of an image, as it is judged."""
        return 3, *self.test.size

    @property
    def preprocessing(self) -> Preprocessing:
        """The images' own size and normalization, for networks whose weights expect no other."""
        return Preprocessing(self.mean, self.std, self.test.size)


def _reflected(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Positions outside 0 .. length - 1 mirrored at the first and last one."""
    mirrored = np.abs(positions)
    return np.where(mirrored >= length, 2 * (length - 1) - mirrored, mirrored)
