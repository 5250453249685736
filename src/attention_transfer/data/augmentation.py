"""Stronger views: RandAugment, random erasing, MixUp and CutMix, of any images.

As everything random here, each is a function of the view and the sample's index. A mixed image's
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
from attention_transfer.data.images import AugmentedView, Images
from attention_transfer.data.randomness import integers, uniform
from attention_transfer.data.views import random_sides
from attention_transfer.functional.measures import box_masks

__all__ = ["WithAugmentation", "erased", "targets"]

GREY = 127
"""What takes the place of what is erased or moved away."""

ERASED_AREA = 0.02, 0.33
ERASED_RATIO = 1 / 3.3, 1 / 0.3
"""Width over height; the paper's is height over width."""


@dataclass(frozen=True)
class WithAugmentation:
    """Images with stronger views; as they are judged, they stay as they were."""

    images: Images
    classes: int
    randaugment: int | None = None
    """Magnitude, 0 to 30, of two random operations (Cubuk et al., 2020); None: off."""
    random_erasing: float = 0.0
    """Probability that a random part is erased (Zhong et al., AAAI 2020)."""
    mixup: float = 0.0
    """alpha of the share lambda ~ Beta(alpha, alpha) in which an image is blended with another's
    (Zhang et al., ICLR 2018); 0: off.
    """
    cutmix: float = 0.0
    """The same of the area that is replaced by another's (Yun et al., ICCV 2019). With both, each
    image is mixed in one of the two ways.
    """

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """(N,) class indices, before any mixing."""
        return self.images.labels

    @property
    def fingerprint(self) -> str:
        """Of the images themselves."""
        return self.images.fingerprint

    @property
    def provenance(self) -> str:
        """That of the images, and what is done to them afterwards."""
        return (
            f"{self.images.provenance}, RandAugment {self.randaugment}, erasing "
            f"{self.random_erasing:g}, MixUp {self.mixup:g}, CutMix {self.cutmix:g}"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.size

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, and so have several labels."""
        return self.mixup > 0 or self.cutmix > 0

    def subset(self, indices: NDArray[np.int64]) -> "WithAugmentation":
        """The images at some indices, in that order."""
        return replace(self, images=self.images.subset(indices))

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "WithAugmentation":
        """The same, decoded to another height and width."""
        return replace(self, images=self.images.resized(size, interpolation))

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Of the images as they are judged."""
        return self.images.masks(indices)

    def name(self, index: int) -> str:
        """What to call a sample in front of people."""
        return self.images.name(index)

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a view of each image, or without one the image as it is judged."""
        if view is None:
            return self.images.pixels(indices)
        pixels = self._changed(indices, view)
        if not self.mixes:
            return pixels
        others = self._changed(self._partners(indices, view), view)
        mixed = self._mixed(pixels.numpy(), others.numpy(), indices, view)
        return torch.from_numpy(np.rint(mixed).astype(np.uint8))

    def shares(self, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """(n, classes): how much of each class is in each view; they sum to 1."""
        own = functional.one_hot(self.labels[torch.from_numpy(indices)], self.classes)
        partners = torch.from_numpy(self._partners(indices, view))
        other = functional.one_hot(self.labels[partners], self.classes)
        kept = torch.from_numpy(self._kept(indices, view))[:, None]
        return (kept * own + (1 - kept) * other).float()

    def _changed(self, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """Views after RandAugment and erasing."""
        pixels = self.images.pixels(indices, view)
        if self.randaugment is not None:
            pixels = _randaugmented(pixels, indices, view, self.randaugment)
        if self.random_erasing:
            pixels = erased(pixels, indices, view, self.random_erasing)
        return pixels

    def _partners(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.int64]:
        return integers(0, len(self) - 1, "partner", view.data_seed, view.number, indices)

    def _cuts(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.bool_]:
        """(n,) whether an image is cut rather than blended."""
        if not (self.mixup and self.cutmix):
            return np.full(len(indices), self.cutmix > 0)
        return uniform("cut or blend", view.data_seed, view.number, indices) < 0.5

    def _lambdas(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.float64]:
        seeds = integers(0, 2**62, "lambda", view.data_seed, view.number, indices)
        alphas = np.where(self._cuts(indices, view), self.cutmix, self.mixup)
        return np.array(list(map(_beta, seeds.tolist(), alphas.tolist())))

    def _boxes(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.bool_]:
        """(n, H, W): the places that come from the partner, where an image is cut."""
        side = np.sqrt(1 - self._lambdas(indices, view))
        key = view.data_seed, view.number, indices
        edges = []
        for name, length in (("row", self.size[0]), ("column", self.size[1])):
            middle = integers(0, length - 1, f"cut {name}", *key)
            half = np.rint(side * length / 2)
            edges.append((middle - half, middle + half))
        (top, bottom), (left, right) = edges
        cut = _inside(left, top, right, bottom, self.size)
        return cut & self._cuts(indices, view)[:, None, None]

    def _kept(self, indices: NDArray[np.int64], view: AugmentedView) -> NDArray[np.float64]:
        """(n,) the share of each view that is the image's own; of a cut one, by its area."""
        area = 1 - self._boxes(indices, view).mean((1, 2))
        return np.where(self._cuts(indices, view), area, self._lambdas(indices, view))

    def _mixed(
        self,
        pixels: NDArray[np.uint8],
        others: NDArray[np.uint8],
        indices: NDArray[np.int64],
        view: AugmentedView,
    ) -> NDArray[np.float64]:
        kept = np.where(
            self._cuts(indices, view)[:, None, None],
            1.0 - self._boxes(indices, view),
            self._lambdas(indices, view)[:, None, None],
        )[..., None]
        return np.asarray(kept * pixels + (1 - kept) * others)


def erased(
    pixels: Tensor, indices: NDArray[np.int64], view: AugmentedView, probability: float
) -> Tensor:
    """Images of which some have a random part made grey (Zhong et al., AAAI 2020).

    The part has 2 to 33 % of the area and is 0.3 to 3.3 times as high as wide; ten tries to fit it
    in, and then nothing is erased.

    Args:
        pixels: (n, H, W, C) uint8, left as they are.
        indices: (n,) the samples' indices in their set.
        view: which of their views.
        probability: of each image to be chosen.

    Returns:
        (n, H, W, C).
    """
    height, width = pixels.shape[1:3]
    drawn = uniform("erase", view.data_seed, view.number, indices) < probability
    key = view.data_seed, view.number, indices[drawn]
    heights, widths = random_sides("erase", (height, width), ERASED_AREA, ERASED_RATIO, *key)
    fits = (heights < height) & (widths < width)
    first = np.arange(len(fits)), fits.argmax(axis=1)
    tall, wide = (
        np.where(fits.any(axis=1), sides[first], 0).astype(np.int64) for sides in (heights, widths)
    )
    top = integers(0, height - tall, "erase top", *key)
    left = integers(0, width - wide, "erase left", *key)
    changed = pixels.numpy()[drawn]
    changed[_inside(left, top, left + wide, top + tall, (height, width))] = GREY
    result = pixels.numpy().copy()
    result[drawn] = changed
    return torch.from_numpy(result)


def _randaugmented(
    pixels: Tensor, indices: NDArray[np.int64], view: AugmentedView, magnitude: int
) -> Tensor:
    """Images (n, H, W, 3) after two random operations each, by torchvision."""
    from torchvision.transforms import v2

    change = v2.RandAugment(2, magnitude, fill=[GREY] * 3)
    seeds = integers(0, 2**62, "transforms", view.data_seed, view.number, indices)
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels.permute(0, 3, 1, 2), seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed).permute(0, 2, 3, 1)


def _inside(
    left: NDArray[Any],
    top: NDArray[Any],
    right: NDArray[Any],
    bottom: NDArray[Any],
    size: tuple[int, int],
) -> NDArray[np.bool_]:
    """(n, H, W): the insides of boxes."""
    boxes = torch.from_numpy(np.stack([left, top, right, bottom], axis=1))
    return box_masks(boxes, size).numpy()


@lru_cache(maxsize=4096)
def _beta(seed: int, alpha: float) -> float:
    """A draw of Beta(alpha, alpha); an image's labels and pixels ask for the same."""
    return float(np.random.Generator(np.random.Philox(seed)).beta(alpha, alpha))


def targets(images: Images, indices: NDArray[np.int64], view: AugmentedView | None) -> Tensor:
    """The labels of some views: (n,) class indices, or of mixed images (n, classes) shares."""
    if view is not None and isinstance(images, WithAugmentation) and images.mixes:
        return images.shares(indices, view)
    return images.labels[torch.from_numpy(indices)]
