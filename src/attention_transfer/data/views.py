"""Which part of an image a view shows: a function of the view and the sample alone."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.decoding import Box
from attention_transfer.data.images import AugmentedView
from attention_transfer.data.randomness import Key, integers, uniform

__all__ = ["CropFlip", "centre", "random_crop", "random_sides"]

_ATTEMPTS = np.arange(10)


def centre(whole: tuple[int, int], size: tuple[int, int], share: float = 0.875) -> Box:
    """The middle of an image: the largest part of the wanted shape, less a border.

    Args:
        whole: height and width of the image.
        size: height and width wanted; their ratio counts.
        share: of the largest such part's sides.

    Example:
        >>> centre((100, 200), (10, 10), share=0.5)
        Box(left=75.0, top=25.0, right=125.0, bottom=75.0)
    """
    scale = share * min(whole[0] / size[0], whole[1] / size[1])
    height, width = min(scale * size[0], whole[0]), min(scale * size[1], whole[1])
    left, top = (whole[1] - width) / 2, (whole[0] - height) / 2
    return Box(left, top, whole[1] - left, whole[0] - top)


def random_sides(
    what: str,
    whole: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
    *key: Key,
    shape: tuple[int, int] = (1, 1),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heights and widths of random parts of an image, ten for whoever needs one that fits in.

    The area is uniform, the ratio of the sides log-uniform; both are rounded to whole pixels.

    Args:
        what: the draw is for.
        whole: height and width of the image.
        area: least and largest share of the image.
        ratio: least and largest width over height, relative to those of the shape.
        key: what else the draw is for, as of :func:`~attention_transfer.data.randomness.uniform`.
        shape: height and width.

    Returns:
        Two arrays of the key's shape with ten elements at the end.

    Example:
        >>> random_sides("nose", (100, 100), (0.25, 0.25), (1.0, 1.0), 0)[0].tolist()[:2]
        [50.0, 50.0]
    """
    keys = *(part[..., None] if isinstance(part, np.ndarray) else part for part in key), _ATTEMPTS
    areas = area[0] + (area[1] - area[0]) * uniform(f"{what} area", *keys)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = np.exp(low + (high - low) * uniform(f"{what} ratio", *keys)) * shape[1] / shape[0]
    pixels = areas * whole[0] * whole[1]
    return np.rint(np.sqrt(pixels / ratios)), np.rint(np.sqrt(pixels * ratios))


def random_crop(
    whole: tuple[int, int],
    size: tuple[int, int],
    view: AugmentedView,
    index: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A part of an image of random area and shape (Szegedy et al., CVPR 2015, section 6).

    The area is uniform, the ratio of the sides log-uniform about the wanted one; ten tries to fit
    it in, and then the middle.

    Args:
        whole: height and width of the image.
        size: height and width wanted.
        view: which view of the sample.
        index: of the sample in its set.
        area: least and largest share of the image.
        ratio: least and largest width over height, relative to the wanted.
    """
    key = view.data_seed, view.number, index
    heights, widths = random_sides("crop", whole, area, ratio, *key, shape=size)
    fits = (widths >= 1) & (heights >= 1) & (widths <= whole[1]) & (heights <= whole[0])
    if not fits.any():
        return centre(whole, size, share=1.0)
    chosen = int(np.argmax(fits))
    width, height = int(widths[chosen]), int(heights[chosen])
    left = int(integers(0, whole[1] - width, "crop left", *key))
    top = int(integers(0, whole[0] - height, "crop top", *key))
    return Box(left, top, left + width, top + height)


@dataclass(frozen=True)
class CropFlip:
    """How the training views of images in files are made.

    Example:
        >>> CropFlip(flip=False).box((100, 100), (32, 32), AugmentedView(0, 1), index=5)
        Box(left=12, top=12, right=91, bottom=94)
    """

    area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image that a crop takes."""
    flip: bool = True
    """Whether half of the views are mirrored, left and right."""

    def box(
        self, whole: tuple[int, int], size: tuple[int, int], view: AugmentedView, index: int
    ) -> Box:
        """The part of an image that a view shows."""
        return random_crop(whole, size, view, index, self.area)

    def finish(
        self, pixels: NDArray[np.uint8], view: AugmentedView, index: int
    ) -> NDArray[np.uint8]:
        """What happens to the cropped image (H, W, 3) afterwards."""
        flipped = self.flip and uniform("flip", view.data_seed, view.number, index) < 0.5
        return pixels[:, ::-1] if flipped else pixels
