"""Labelled images, in memory or decoded one by one, and data sets of them."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.data.views import (
    CENTRE_SHARE,
    Augmentation,
    CropResize,
    Pixels,
    Transform,
    TransformImages,
)
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.functional.measures import box_masks
from attention_transfer.preprocessing import PixelRange, Preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DataSet",
    "DecodedImages",
    "ImageSet",
    "Images",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation by channel, on a scale of 0 to 1."""


class Images(Protocol):
    """Labelled images that batches are made of, in memory or in files."""

    @property
    def labels(self) -> Tensor:
        """The class index of each image, (N,)."""

    @property
    def fingerprint(self) -> str:
        """A hash of all images and labels."""

    @property
    def identity(self) -> str:
        """A hash by which a resumed run knows its images: of all of them where that takes a moment,
        else of every label, name and size, and of some of the images.
        """

    @property
    def provenance(self) -> str:
        """A description of how augmented views are made: with the fingerprint, the data seed and
        the view's number it determines every pixel.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what :meth:`pixels` returns."""

    @property
    def channels(self) -> int:
        """The number of channels of what :meth:`pixels` returns."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of what :meth:`pixels` returns: uint8, or float32 from 0 to 1."""

    def __len__(self) -> int: ...

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """Return the images at some indices, in that order."""

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> Self:
        """Return the same images at another height and width; images in memory keep theirs."""

    def with_transform(self, transform: Transform) -> Self:
        """Return the same images with a transform that makes their augmented views."""

    def name(self, index: int) -> str:
        """Return what messages call a sample."""

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """Return (n, H, W, C), uint8 or float32 from 0 to 1: an augmented view of each image;
        without one, the image as it is evaluated.
        """

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return (n, H, W) bool: where the object is in each image as it is evaluated; all False
        where that is unknown. None: it is unknown for every image of the set.
        """


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory."""

    images: Tensor
    """(N, H, W, C), uint8 or float32 from 0 to 1."""
    labels: Tensor
    """The class index of each image, (N,)."""
    boxes: Tensor | None = None
    """(N, 4), where each object is: left, top, right, bottom in pixels, the last two excluded."""
    augmentation: Augmentation | TransformImages = field(default_factory=Augmentation)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def provenance(self) -> str:
        """The description of the augmentation."""
        return str(self.augmentation)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the images in pixels."""
        height, width = self.images.shape[1:3]
        return height, width

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.images.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the images."""
        return self.images.dtype

    def subset(self, indices: NDArray[np.int64]) -> "ImageSet":
        """Return the images at some indices, in that order."""
        chosen = torch.from_numpy(indices)
        boxes = None if self.boxes is None else self.boxes[chosen]
        return ImageSet(self.images[chosen], self.labels[chosen], boxes, self.augmentation)

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "ImageSet":
        """Return the same images: those in memory keep their size."""
        return self

    def with_transform(self, transform: Transform) -> "ImageSet":
        """Return the same images with a transform in place of their augmentation."""
        return replace(self, augmentation=TransformImages(transform))

    def name(self, index: int) -> str:
        """Return the sample's number."""
        return f"sample {index}"

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """Return (n, H, W, C): an augmented view of each image, or the image itself."""
        chosen = self.images.index_select(0, torch.from_numpy(indices))
        return chosen if view is None else self.augmentation(chosen, indices, view)

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return (n, H, W) bool, True inside the objects' boxes; None without boxes."""
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

    @property
    def identity(self) -> str:
        """The hash of every pixel and label: images in memory are hashed in a moment."""
        return self.fingerprint


@dataclass(frozen=True)
class DecodedImages(ABC):
    """Labelled images that are decoded, cropped and resized one by one when a batch needs them."""

    labels: Tensor
    """The class index of each image, (N,)."""
    crop_resize: CropResize

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def provenance(self) -> str:
        """The crop or transform, and the size that images are brought to."""
        return str(self.crop_resize)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that images are brought to."""
        return self.crop_resize.size

    @property
    def channels(self) -> int:
        """The number of channels that images are brought to."""
        return self.crop_resize.channels

    @property
    def dtype(self) -> torch.dtype:
        """uint8, or float32 where images have more than 8 bits."""
        return torch.uint8 if self.crop_resize.pixel_range is None else torch.float32

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> Self:
        """Return the same images, brought to another height and width."""
        crop_resize = replace(self.crop_resize, size=size, interpolation=interpolation)
        return replace(self, crop_resize=crop_resize)

    def with_transform(self, transform: Transform) -> Self:
        """Return the same images with a transform in place of the random crop and flip."""
        return replace(self, crop_resize=replace(self.crop_resize, transform=transform))

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """Return (n, H, W, C): an augmented view of each image, or its centre crop.

        Raises:
            TrainingError: an image cannot be decoded or transformed.
        """
        return torch.from_numpy(np.stack([self._decoded(int(index), view) for index in indices]))

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what messages call a sample."""

    @abstractmethod
    def source(self, index: int) -> Any:
        """Return one image: the bytes of a file, its path, or what a user's data set holds.

        Raises:
            CorruptImageError: it cannot be read.
        """

    @abstractmethod
    def _decoded(self, index: int, view: AugmentedView | None) -> Pixels:
        """Return one image (H, W, C)."""


@dataclass(frozen=True)
class DataSet:
    """The images that a network is trained and evaluated on.

    Test images are evaluated once, at the end; nothing is trained on or chosen by them.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """By channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    notices: tuple[str, ...] = ()
    """Messages for the user on how the images were read, such as which were skipped."""
    corrupt: tuple[tuple[str, str], ...] = ()
    """The images that were skipped because they cannot be decoded: the name of each, and why."""
    pixel_range: PixelRange | None = None
    """The values that become 0 and 1, of images of more than 8 bits; None: there are none."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as it is evaluated."""
        return self.channels, *self.test.size

    @property
    def preprocessing(self) -> Preprocessing:
        """The images' size and normalization, for networks whose weights expect no other."""
        expected = Preprocessing(self.mean, self.std, self.test.size, pixel_range=self.pixel_range)
        return (
            expected
            if 3 == self.channels == len(self.mean)
            else expected.for_channels(self.channels)
        )

    @property
    def centre_share(self) -> float:
        """The sides of the centre crop that networks are evaluated on, over those of the largest
        one of its aspect ratio; 1 where they get whole images.
        """
        return 1.0 if isinstance(self.test, ImageSet) else CENTRE_SHARE

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.test.channels

    def with_channels(self, channels: int) -> "DataSet":
        """Return the same data with a number of channels, which all images have.

        Raises:
            InputError: the first training image has others, or the images are in memory.
        """
        if channels == self.channels:
            return self
        parts: dict[str, Any] = {}
        for split in ("train", "validation", "test"):
            images = getattr(self, split)
            if not isinstance(images, DecodedImages):
                raise InputError(f"the images of {self.name} have {self.channels} channels")
            crop_resize = replace(images.crop_resize, channels=channels)
            parts[split] = replace(images, crop_resize=crop_resize)
        try:
            parts["train"].pixels(np.zeros(1, dtype=np.int64))
        except TrainingError as error:
            raise InputError(str(error)) from error
        return replace(self, **parts)

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "DataSet":
        """Return the same data at another height and width; images in memory keep theirs."""
        return replace(
            self,
            train=self.train.resized(size, interpolation),
            validation=self.validation.resized(size, interpolation),
            test=self.test.resized(size, interpolation),
        )

    def with_transform(self, transform: Transform) -> "DataSet":
        """Return the same data with a transform that makes the training images' augmented views.

        It replaces the standard augmentation; evaluation does not use it. What it returns is
        resized to the data set's height and width. It runs with the generators of torch, numpy and
        Python seeded for the sample, so that a run does not depend on workers or on where it was
        resumed.

        Args:
            transform: called with each whole RGB image of PIL; returns an image of PIL, an array
                (H, W, 3) or a tensor (3, H, W), uint8 or floating-point from 0 to 1, before
                normalization. Images of more than 8 bits or other channels come as tensors
                (C, H, W), floating-point from 0 to 1. Give a class of your own a ``__repr__`` that
                shows its settings: a cache of teacher targets is refused when it changes.

        Raises:
            InputError: the transform fails on the first training image.

        Example:
            >>> from torchvision.transforms import v2
            >>> data = at.data.load_data("cluttered-digits")
            >>> data.with_transform(v2.RandomCrop(32, padding=4)).train.provenance[:10]
            'RandomCrop'
        """
        train = self.train.with_transform(transform)
        try:
            train.pixels(np.zeros(1, dtype=np.int64), AugmentedView(0, 0))
        except TrainingError as error:
            raise InputError(str(error)) from error
        return replace(self, train=train)
