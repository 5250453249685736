"""Stronger augmentation of any images: RandAugment, random erasing, MixUp and CutMix.

Like all augmentation, each draw is a function of the view and the sample's index. A mixed image's
partner is drawn from the whole set, so that neither batches nor processes matter.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from attention_transfer.config import Interpolation
from attention_transfer.data.images import Images
from attention_transfer.data.randomness import (
    AugmentedView,
    integers,
    sample_seeds,
    seeded_torch,
    uniform,
)
from attention_transfer.data.views import Transform
from attention_transfer.functional.measures import box_masks

__all__ = ["WithAugmentation", "targets"]

GREY = 127
"""The value of pixels that are erased or moved in from outside."""


@dataclass(frozen=True)
class WithAugmentation:
    """Images with stronger augmented views; evaluation uses the images themselves."""

    images: Images
    classes: int
    """The number of classes."""
    randaugment: int | None = None
    """Magnitude, 0 to 30, of two random operations (Cubuk et al., 2020); None: off."""
    random_erasing: float = 0.0
    """Probability that a random part is made grey (Zhong et al., AAAI 2020)."""
    mixup: float = 0.0
    """alpha of MixUp's share lambda ~ Beta(alpha, alpha) (Zhang et al., ICLR 2018); 0: off."""
    cutmix: float = 0.0
    """alpha of CutMix's share of the area (Yun et al., ICCV 2019); 0: off. If MixUp is on too, each
    image is mixed by one of the two, with probability 1/2.
    """

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """(N,) class indices, before any mixing."""
        return self.images.labels

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the images."""
        return self.images.fingerprint

    @property
    def identity(self) -> str:
        """The identity of the images."""
        return self.images.identity

    @property
    def provenance(self) -> str:
        """The provenance of the images, and the stronger augmentation."""
        return (
            f"{self.images.provenance}, RandAugment {self.randaugment}, erasing "
            f"{self.random_erasing:g}, MixUp {self.mixup:g}, CutMix {self.cutmix:g}"
        )

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the images in pixels."""
        return self.images.size

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.images.channels

    @property
    def dtype(self) -> torch.dtype:
        """The type of the images' pixels."""
        return self.images.dtype

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, and so have shares of classes instead of one label."""
        return self.mixup > 0 or self.cutmix > 0

    def subset(self, indices: NDArray[np.int64]) -> "WithAugmentation":
        """Return the images at some indices, in that order."""
        return replace(self, images=self.images.subset(indices))

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "WithAugmentation":
        """Return the same images at another height and width."""
        return replace(self, images=self.images.resized(size, interpolation))

    def with_transform(self, transform: Transform) -> "WithAugmentation":
        """Return the same images with a transform that runs before the stronger augmentation."""
        return replace(self, images=self.images.with_transform(transform))

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return the masks of the images as they are evaluated."""
        return self.images.masks(indices)

    def name(self, index: int) -> str:
        """Return what messages call a sample."""
        return self.images.name(index)

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """Return (n, H, W, C): an augmented view of each image; without one, the image as it is
        evaluated.
        """
        if view is None:
            return self.images.pixels(indices)
        pixels = self._transformed(indices, view)
        if not self.mixes:
            return pixels
        partners = self._transformed(self._partners(indices, view), view)
        weights = np.where(
            self._uses_cutmix(indices, view)[:, None, None],
            1.0 - self._cut_boxes(indices, view),
            self._lambdas(indices, view)[:, None, None],
        )[..., None]
        mixed = weights * pixels.numpy() + (1 - weights) * partners.numpy()
        if pixels.dtype == torch.uint8:
            mixed = np.rint(mixed)
        return torch.from_numpy(mixed.astype(pixels.numpy().dtype))

    def shares(self, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """Return (n, classes) float32: the share of each class in each view; rows sum to 1, unless
        images are of several classes each.
        """
        labels, partner_labels = (
            _shares_of(self.labels[torch.from_numpy(chosen)], self.classes)
            for chosen in (indices, self._partners(indices, view))
        )
        weights = torch.from_numpy(
            np.where(
                self._uses_cutmix(indices, view),
                1 - self._cut_boxes(indices, view).mean((1, 2)),
                self._lambdas(indices, view),
            )
        )[:, None]
        return (weights * labels + (1 - weights) * partner_labels).float()

    def _transformed(self, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """Return the views after RandAugment and erasing, before any mixing."""
        pixels = self.images.pixels(indices, view)
        if self.randaugment is None and not self.random_erasing:
            return pixels
        grey = GREY if pixels.dtype == torch.uint8 else GREY / 255
        transform = _transform(self.randaugment, self.random_erasing, grey, self.channels)
        images = []
        for image, seed in zip(
            pixels.permute(0, 3, 1, 2), sample_seeds("transforms", view, indices), strict=True
        ):
            with seeded_torch(seed):
                images.append(transform(image))
        return torch.stack(images).permute(0, 2, 3, 1) if images else pixels

    def _partners(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.int64]:
        return integers(0, len(self) - 1, "partner", view.data_seed, view.number, indices)

    def _uses_cutmix(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.bool_]:
        """Return (n,): whether an image is mixed by CutMix rather than MixUp."""
        if not (self.mixup and self.cutmix):
            return np.full(len(indices), self.cutmix > 0)
        return uniform("cut or blend", view.data_seed, view.number, indices) < 0.5

    def _lambdas(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.float64]:
        seeds = integers(0, 2**62, "lambda", view.data_seed, view.number, indices)
        alphas = np.where(self._uses_cutmix(indices, view), self.cutmix, self.mixup)
        return np.array(list(map(_beta, seeds.tolist(), alphas.tolist())))

    def _cut_boxes(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.bool_]:
        """Return (n, H, W): the pixels that CutMix takes from the partner."""
        side = np.sqrt(1 - self._lambdas(indices, view))
        key = view.data_seed, view.number, indices
        edges = []
        for name, length in (("row", self.size[0]), ("column", self.size[1])):
            middle = integers(0, length - 1, f"cut {name}", *key)
            half = np.rint(side * length / 2)
            edges.append((middle - half, middle + half))
        (top, bottom), (left, right) = edges
        boxes = torch.from_numpy(np.stack([left, top, right, bottom], axis=1))
        inside = box_masks(boxes, self.size).numpy()
        return inside & self._uses_cutmix(indices, view)[:, None, None]


def _shares_of(labels: Tensor, classes: int) -> Tensor:
    """Return labels as shares (n, classes), which those of several classes each are already."""
    return labels if labels.dim() == 2 else functional.one_hot(labels, classes)


@lru_cache
def _transform(magnitude: int | None, erasing: float, grey: float, channels: int) -> Any:
    """Return torchvision's RandAugment and random erasing, each if it is on."""
    from torchvision.transforms import v2

    transforms: list[Any] = []
    if magnitude is not None:
        transforms.append(v2.RandAugment(2, magnitude, fill=[grey] * channels))
    if erasing:
        transforms.append(v2.RandomErasing(erasing, value=grey))
    return v2.Compose(transforms)


@lru_cache(maxsize=4096)
def _beta(seed: int, alpha: float) -> float:
    """Draw from Beta(alpha, alpha); cached, because an image's pixels and labels use the same."""
    return float(np.random.Generator(np.random.Philox(seed)).beta(alpha, alpha))


def targets(images: Images, indices: NDArray[np.int64], view: AugmentedView | None) -> Tensor:
    """Return the labels of some views: (n,) class indices, or (n, classes) shares of mixed ones."""
    if view is not None and isinstance(images, WithAugmentation) and images.mixes:
        return images.shares(indices, view)
    return images.labels[torch.from_numpy(indices)]
