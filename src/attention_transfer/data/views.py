"""Augmented views of images, each a function of the view and the sample alone, and centre crops."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.arrays import as_pil, check_unit_values
from attention_transfer.data.decoding import (
    Bands,
    Box,
    CorruptImageError,
    check_channels,
    file_channels,
    file_content,
    image_size,
    opened_bands,
    resized_bands,
    resized_part,
    upright_rgb,
    upright_size,
)
from attention_transfer.data.deep_images import (
    array_of,
    bands_of_array,
    is_deep,
    on_white,
    scaled_bands,
)
from attention_transfer.data.randomness import (
    AugmentedView,
    integers,
    sample_seeds,
    seeded_generators,
    seeded_torch,
    uniform,
)
from attention_transfer.errors import TrainingError
from attention_transfer.preprocessing import EIGHT_BITS, PixelRange

__all__ = [
    "CENTRE_SHARE",
    "Augmentation",
    "CropResize",
    "Pixels",
    "Transform",
    "TransformImages",
    "centre",
    "random_crop_and_flip",
    "size_and_channels",
]

Transform = Callable[[Any], Any]
"""A user's augmentation: an RGB image of PIL to an image of PIL, an array (H, W, 3) or a tensor
(3, H, W), uint8 or floating-point from 0 to 1. Where images have more than 8 bits or other channels
it is given a tensor (C, H, W), floating-point from 0 to 1. It runs with the generators of torch,
numpy and Python seeded for the sample. A cache of teacher targets recognises it by its ``repr``.
"""

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""Pixels (H, W, C): of 8 bits, or floating-point from 0 to 1."""

CROP_AREA = 0.08, 1.0
"""Least and largest share of an image that a random crop takes."""
CROP_RATIO = 3 / 4, 4 / 3
"""Least and largest width over height of a random crop, relative to that of the result."""
CENTRE_SHARE = 0.875
"""The sides of the part of an image in a file that networks are evaluated on, over those of the
largest one of its shape.
"""


def centre(whole: tuple[int, int], size: tuple[int, int], share: float = CENTRE_SHARE) -> Box:
    """Return the middle of an image: the largest part of the size's shape, less a border.

    Args:
        whole: height and width of the image.
        size: height and width of the result; only their ratio matters.
        share: the part's sides, relative to the largest such part.

    Example:
        >>> centre((100, 200), (10, 10), share=0.5)
        Box(left=75.0, top=25.0, right=125.0, bottom=75.0)
    """
    scale = share * min(whole[0] / size[0], whole[1] / size[1])
    height, width = min(scale * size[0], whole[0]), min(scale * size[1], whole[1])
    left, top = (whole[1] - width) / 2, (whole[0] - height) / 2
    return Box(left, top, whole[1] - left, whole[0] - top)


def random_crop_and_flip(
    whole: tuple[int, int], size: tuple[int, int], seed: int
) -> tuple[Box, bool]:
    """Draw what torchvision's RandomResizedCrop and RandomHorizontalFlip would, without pixels.

    Args:
        whole: height and width of the image.
        size: height and width of the result; only their ratio matters.
        seed: of torch's generator.

    Returns:
        The part to crop, and whether to flip it left and right.

    Example:
        >>> random_crop_and_flip((100, 100), (32, 32), seed=0)
        (Box(left=14, top=23, right=93, bottom=91), True)
    """
    from torchvision.transforms import v2  # takes half a second

    image = torch.empty((1, *whole), device="meta")
    ratio = [limit * size[1] / size[0] for limit in CROP_RATIO]
    with seeded_torch(seed):
        top, left, height, width = v2.RandomResizedCrop.get_params(image, list(CROP_AREA), ratio)
        flip = bool(torch.rand(1) < 0.5)
    if height == 0 or width == 0:  # in an image of a few pixels
        return centre(whole, size, share=1.0), flip
    return Box(left, top, left + width, top + height), flip


@dataclass(frozen=True)
class CropResize:
    """Bring opened images to one size: the centre crop, or the augmented view of a sample."""

    size: tuple[int, int]
    """Height and width of the result."""
    interpolation: Interpolation = "bilinear"
    transform: Transform | None = None
    """Makes augmented views from whole images; None: a random crop, and half of them flipped."""
    pixel_range: PixelRange | None = None
    """Of images of more than 8 bits; None: there are none, and pixels stay uint8."""
    channels: int = 3
    """Of the result: 3, to which grey images and those with opacity are brought; or as many as all
    images have.
    """

    def __str__(self) -> str:
        height, width = self.size
        augmentation = (
            f"random crop of {CROP_AREA[0]:.0%} to {CROP_AREA[1]:.0%} of the area and flip"
            if self.transform is None
            else _stable_repr(self.transform)
        )
        values = "" if self.pixel_range is None else f", values {self.pixel_range}"
        channels = "" if self.channels == 3 else f", {self.channels} channels"
        return f"{augmentation}, {self.interpolation} to {height}x{width}{values}{channels}"

    def decode(
        self,
        image: Image.Image | NDArray[Any],
        view: AugmentedView | None,
        index: int,
        *,
        draft: bool,
    ) -> Pixels:
        """Return the pixels that :meth:`finish` takes: those of the crop, or all for a transform.

        Args:
            image: opened, or an array of it.
            view: the augmented view; None: the centre crop.
            index: of the sample in its set.
            draft: see :func:`~attention_transfer.data.decoding.resized_part`.

        Raises:
            CorruptImageError: it has other channels than the set, or takes too much memory.
        """
        if isinstance(image, Image.Image):
            check_channels(image, self.channels)
        if isinstance(image, Image.Image) and self._is_converted(image):
            return self._typed(self._eight_bits(image, view, index, draft))
        bands, pixel_range = self._bands(image)
        if view is not None and self.transform is not None:
            return self._with_channels(scaled_bands(bands, pixel_range or EIGHT_BITS))
        box, flip = self._box((bands[0].height, bands[0].width), view, index)
        pixels = self._part_of_bands(bands, pixel_range, box)
        return pixels[:, ::-1] if flip else pixels

    def part(self, image: Image.Image | NDArray[Any], box: Box, *, draft: bool = False) -> Pixels:
        """Return any part of an image, in pixels of the upright one, as :meth:`decode` does.

        Raises:
            CorruptImageError: as of :meth:`decode`.
        """
        if isinstance(image, Image.Image):
            check_channels(image, self.channels)
        if isinstance(image, Image.Image) and self._is_converted(image):
            pixels = resized_part(image, self.size, box, self.interpolation, draft=draft)
            return self._typed(pixels)
        return self._part_of_bands(*self._bands(image), box)

    def finish(self, pixels: Pixels, view: AugmentedView | None, index: int) -> Pixels:
        """Return the final pixels (H, W, C): those decoded, or what the transform makes of them.

        Raises:
            TrainingError: the transform fails, or does not return an image.
        """
        if view is None or self.transform is None:
            return pixels
        (seed,) = sample_seeds("transform", view, np.array([index]))
        return _transformed(self.transform, pixels, self.size, self.interpolation, seed)

    def _is_converted(self, image: Image.Image) -> bool:
        """Return whether PIL brings the image to colours of 8 bits."""
        return self.channels == 3 and (self.pixel_range is None or not is_deep(image))

    def _eight_bits(
        self, image: Image.Image, view: AugmentedView | None, index: int, draft: bool
    ) -> NDArray[np.uint8]:
        """Return the pixels (H, W, 3) of an image that PIL brings to colours of 8 bits."""
        if view is not None and self.transform is not None:
            return np.asarray(upright_rgb(image))
        box, flip = self._box(upright_size(image), view, index)
        pixels = resized_part(image, self.size, box, self.interpolation, draft=draft)
        return pixels[:, ::-1] if flip else pixels

    def _box(
        self, whole: tuple[int, int], view: AugmentedView | None, index: int
    ) -> tuple[Box, bool]:
        """Return the part of an image to take, and whether to flip it."""
        if view is None:
            return centre(whole, self.size), False
        (seed,) = sample_seeds("crop and flip", view, np.array([index]))
        return random_crop_and_flip(whole, self.size, seed)

    def _bands(self, image: Image.Image | NDArray[Any]) -> tuple[Bands, PixelRange | None]:
        """Return the channels of an image, and the range of their values."""
        if isinstance(image, Image.Image):
            bands = opened_bands(image)
        else:
            bands = bands_of_array(image, None if self.channels == 3 else self.channels)
        if self.channels == 3 and len(bands) in (2, 4):
            return on_white(bands, self.pixel_range or EIGHT_BITS), PixelRange(0, 1)
        if len(bands) != self.channels and not (self.channels == 3 and len(bands) == 1):
            raise CorruptImageError(
                f"it has {len(bands)} channels, expected {self.channels}, as the others have"
            )
        return bands, self.pixel_range

    def _part_of_bands(self, bands: Bands, pixel_range: PixelRange | None, box: Box) -> Pixels:
        pixels = resized_bands(bands, self.size, box, self.interpolation, pixel_range)
        return self._with_channels(self._typed(pixels))

    def _typed(self, pixels: Pixels) -> Pixels:
        """Return the pixels as the whole set has them: uint8, or from 0 to 1."""
        if self.pixel_range is None or pixels.dtype != np.uint8:
            return pixels
        return pixels.astype(np.float32) / np.float32(255)

    def _with_channels(self, pixels: Pixels) -> Pixels:
        return pixels.repeat(self.channels, axis=2) if pixels.shape[2] == 1 else pixels


@dataclass(frozen=True)
class Augmentation:
    """Random crops of the image padded by reflection, and horizontal flips of half of them."""

    pad: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """Return one augmented view of each image.

        Args:
            images: (N, H, W, C).
            indices: (N,) the samples' indices in their set.
            view: the augmented view.
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
        # One element holds all channels of a pixel, so that one take moves whole pixels.
        pixels = whole.view(f"V{whole.shape[3] * whole.itemsize}").reshape(-1)
        lines = height * np.arange(len(whole))[:, None] + rows
        positions = width * lines[:, :, None] + columns[:, None, :]
        return torch.from_numpy(pixels.take(positions).view(whole.dtype).reshape(whole.shape))


@dataclass(frozen=True)
class TransformImages:
    """Augment images in memory by a user's transform, one by one."""

    transform: Transform

    def __str__(self) -> str:
        return _stable_repr(self.transform)

    def __call__(self, images: Tensor, indices: NDArray[np.int64], view: AugmentedView) -> Tensor:
        """Return one augmented view of each image (N, H, W, C).

        Raises:
            TrainingError: the transform fails, or does not return an image.
        """
        height, width = images.shape[1:3]
        views = [
            _transformed(self.transform, pixels, (height, width), "bilinear", seed)
            for pixels, seed in zip(
                images.numpy(), sample_seeds("transform", view, indices), strict=True
            )
        ]
        return torch.from_numpy(np.stack(views)) if views else images


def _transformed(
    transform: Transform,
    pixels: Pixels,
    size: tuple[int, int],
    interpolation: Interpolation,
    seed: int,
) -> Pixels:
    """Return what a transform makes of an image (h, w, C), resized to a height and width."""
    colours = pixels.dtype == np.uint8 and pixels.shape[2] == 3
    try:
        with seeded_generators(seed):
            if colours:
                result = as_pil(transform(Image.fromarray(pixels)))
            else:
                tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
                bands = _bands_of_result(transform(tensor), pixels.shape[2])
    except Exception as error:
        height, width = pixels.shape[:2]
        taken = "an RGB image of PIL" if colours else f"a tensor ({pixels.shape[2]}, H, W)"
        raise TrainingError(
            f"the transform {_stable_repr(transform)} failed on an image {height}x{width} "
            f"({type(error).__name__}: {error}); it must take {taken} and return one, "
            f"or a tensor ({pixels.shape[2]}, H, W)"
        ) from error
    if not colours:
        values = resized_bands(bands, size, None, interpolation, PixelRange(0, 1))
        return values if pixels.dtype != np.uint8 else np.rint(255 * values).astype(np.uint8)
    if (result.height, result.width) == size:
        return np.asarray(upright_rgb(result))
    return resized_part(result, size, interpolation=interpolation)


def _bands_of_result(result: Any, channels: int) -> Bands:
    """Return the channels of what a transform made of a tensor (C, H, W)."""
    array = array_of(result)
    if array is None:
        raise TypeError(f"it returned a {type(result).__name__}")
    check_unit_values(array)
    bands = bands_of_array(array, channels)
    if len(bands) != channels:
        raise ValueError(f"it returned {array.shape}")
    return bands


def _stable_repr(transform: Transform) -> str:
    """Return a transform's repr in one line, without memory addresses, which differ by process."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform)).split())


def _reflected(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Mirror positions outside 0 .. length - 1 at the first and the last one."""
    mirrored = np.abs(positions)
    return np.where(mirrored >= length, 2 * (length - 1) - mirrored, mirrored)


def size_and_channels(image: Any) -> tuple[tuple[int, int], int]:
    """Return height and width of an image, and the channels that it is brought to.

    Arrays of other numbers of channels than those of grey and colour images stay as they are.
    """
    content, array = file_content(image), array_of(image)
    if content is not None:
        return image_size(content), file_channels(content)
    if array is None:
        return upright_size(as_pil(image)), 3
    bands = bands_of_array(array)
    size = bands[0].height, bands[0].width
    return size, 3 if len(bands) in (1, 3, 4) else len(bands)
