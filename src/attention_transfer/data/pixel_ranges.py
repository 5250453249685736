"""One scale for all images of a data set that have more than 8 bits: given, or found from them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from attention_transfer.data.arrays import check_unit_values
from attention_transfer.data.decoding import (
    file_content,
    open_image,
    opened_bands,
)
from attention_transfer.data.deep_images import (
    Extent,
    array_of,
    bands_of_array,
    extent_of,
    found_range,
    is_deep,
    is_deep_array,
    may_be_deep,
)
from attention_transfer.data.images import DataSet, DecodedImages, Images, ImageSet
from attention_transfer.data.tiff_files import has_undeclared_band
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import EIGHT_BITS, PixelRange

__all__ = ["on_one_scale", "range_of"]

MOST_SEARCHED = 50_000
"""Images of the largest split that are all searched for the largest value; of others a part is."""

PART_SEARCHED = 1_000
"""Images of a larger split that are searched, evenly spread."""

PROBED = 16
"""Decoded images of a split that tell whether the others are worth decoding for their values."""

READERS, TOGETHER = 8, 64
"""Threads that read files, and the files that each reads in one go."""

_Read = Callable[[], Any]
"""A function that returns an image: bytes, a path, or one of PIL, an array or a tensor."""

SPLITS = ("train", "validation", "test")


class _Search(NamedTuple):
    """The images of more than 8 bits among some of a data set."""

    extents: list[Extent]
    eight_bits: int
    """The number of other images."""
    partial: bool
    """Whether there are images that were not searched."""


def on_one_scale(
    data: DataSet, given: PixelRange | None = None, default: PixelRange | None = None
) -> DataSet:
    """Return a data set whose images of more than 8 bits have one scale, and say which.

    Images of 8 bits stay what they are.

    Args:
        data: the data set.
        given: by the user; None: the default, or what is found from the images of all splits.
        default: of the network that is evaluated; only for images of more than 8 bits.

    Raises:
        InputError: a range is given, and all images have 8 bits; or arrays hold floating-point
            numbers outside 0 to 1, and no range is given.
    """
    parts = [getattr(data, split) for split in SPLITS]
    if data.pixel_range is not None:
        if given in (None, data.pixel_range):
            return data
        if any(isinstance(part, ImageSet) for part in parts):
            raise InputError(
                f"the images of {data.name} are in memory, and scaled from the pixel range "
                f"{data.pixel_range} to 0 to 1; leave out the range {given}"
            )
    search = _searched(parts, check_floats=given is None and default is None)
    if not search.extents:
        if given not in (None, EIGHT_BITS):
            raise InputError(
                f"the pixel range {given} is for images of more than 8 bits, and those of "
                f"{data.name} have 8: their values 0 to 255 are used as they are; leave it out"
            )
        if default in (None, EIGHT_BITS):
            return data
        notice = f"images of 8 bits, by a network that was trained on the pixel range {default}"
        return replace(data, notices=(*data.notices, notice))
    pixel_range = given or default or _found(search.extents)
    if pixel_range is None:
        return data
    scaled: dict[str, Any] = {
        split: _scaled(part, pixel_range) for split, part in zip(SPLITS, parts, strict=True)
    }
    notice = _notice(search, pixel_range, found=given is None and default is None)
    return replace(data, **scaled, pixel_range=pixel_range, notices=(*data.notices, notice))


def range_of(
    sources: Sequence[Any], given: PixelRange | None = None, default: PixelRange | None = None
) -> PixelRange | None:
    """Return the one range of images that are shown, or None if all have 8 bits.

    Args:
        sources: paths, images of PIL, and arrays.
        given: by the user.
        default: of a network that was trained with it.

    Raises:
        InputError: a range is given, and all images have 8 bits.
    """
    searched = [_extent(partial(_unchanged, source)) for source in sources]
    extents = [extent for extent in searched if extent is not None]
    if extents:
        return given or default or _found(extents)
    if given not in (None, EIGHT_BITS):
        raise InputError(
            f"the pixel range {given} is for images of more than 8 bits, and these have 8: their "
            "values 0 to 255 are used as they are; leave it out"
        )
    return None


def _unchanged(source: Any) -> Any:
    return source


def _found(extents: Sequence[Extent]) -> PixelRange | None:
    """Return the range of images; None if all are of 8 bits that larger types hold."""
    return None if all(one.eight_bits for one in extents) else found_range(extents)


def _searched(parts: Sequence[Images], *, check_floats: bool) -> _Search:
    extents: list[Extent | None] = []
    some_alone = False
    for images in parts:
        if isinstance(images, DecodedImages):
            chosen = np.arange(len(images))
            if len(images) > MOST_SEARCHED:
                chosen, some_alone = _spread(len(images), PART_SEARCHED), True
            sources = [_source(images, int(index), check_floats) for index in chosen]
            if _in_files(images):
                with ThreadPoolExecutor(READERS) as pool:
                    for found in pool.map(_extents, _chunks(sources)):
                        extents += found
            elif _worth_searching(sources):
                extents += map(_extent, sources)  # code of the user's, perhaps not for threads
            else:
                extents += [None] * len(sources)
        elif isinstance(images, ImageSet) and len(images):
            extents.append(_extent_of_tensor(images, check_floats))
    deep = [extent for extent in extents if extent is not None]
    return _Search(deep, len(extents) - len(deep), some_alone)


def _source(images: DecodedImages, index: int, check_floats: bool) -> _Read:
    def read() -> Any:
        source = images.source(index)
        array = array_of(source)
        if check_floats and array is not None:
            try:
                check_unit_values(array)
            except ValueError as error:
                raise InputError(
                    f"{images.name(index)}: {error}; or give --pixel-range LOW:HIGH, the values "
                    "that become 0 and 1"
                ) from None
        return source

    return read


def _in_files(images: DecodedImages) -> bool:
    """Return whether images are encoded, so that first bytes tell how deep most are."""
    try:
        source = images.source(0)
        return isinstance(source, Path) or file_content(source) is not None
    except Exception:
        return False


def _worth_searching(sources: Sequence[_Read]) -> bool:
    """Return False where some decoded images all have 8 bits: reading all would take long."""
    if not sources:
        return False
    some = _spread(len(sources), PROBED)
    return any(_extent(sources[index]) is not None for index in some)


def _chunks(sources: Sequence[_Read]) -> list[Sequence[_Read]]:
    return [sources[start : start + TOGETHER] for start in range(0, len(sources), TOGETHER)]


def _extents(sources: Sequence[_Read]) -> list[Extent | None]:
    return list(map(_extent, sources))


def _extent(read: _Read) -> Extent | None:
    """Return the extent of an image of more than 8 bits; None for others.

    An image that cannot be read is named when it is trained on.
    """
    try:
        source = read()
        content = source if isinstance(source, Path) else file_content(source)
        if content is not None:
            if not may_be_deep(content):
                return None
            with open_image(content) as image:
                return _extent_of_image(image)
        if isinstance(source, Image.Image):
            return _extent_of_image(source)
        array = array_of(source)
        if array is None or not is_deep_array(array):
            return None
        return extent_of(bands_of_array(array))
    except InputError:
        raise
    except Exception:
        return None


def _extent_of_image(image: Image.Image) -> Extent | None:
    if not is_deep(image):
        return None
    count = 4 if has_undeclared_band(image) else 3  # another fourth is opacity
    return extent_of(opened_bands(image)[:count])


def _extent_of_tensor(images: ImageSet, check_floats: bool) -> Extent | None:
    array = images.images.numpy()
    if not is_deep_array(array):
        return None
    if check_floats:
        try:
            check_unit_values(array)
        except ValueError as error:
            raise InputError(f"images in memory: {error}") from None
    whole = np.issubdtype(array.dtype, np.integer)
    return Extent(float(array.min()), float(array.max()), bool(whole))


def _scaled(images: Images, pixel_range: PixelRange) -> Images:
    if isinstance(images, DecodedImages):
        return replace(images, crop_resize=replace(images.crop_resize, pixel_range=pixel_range))
    if isinstance(images, ImageSet) and images.dtype != torch.uint8:
        values = (images.images.double() - pixel_range.low) / pixel_range.span
        return replace(images, images=values.nan_to_num(0.0).clamp(0, 1).float())
    return images


def _spread(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _notice(search: _Search, pixel_range: PixelRange, *, found: bool) -> str:
    low, high = (f"{value:.15g}" for value in pixel_range)
    lowest, highest = (
        min(one.low for one in search.extents),
        max(one.high for one in search.extents),
    )
    parts = [f"images of more than 8 bits: pixel range {low} to {high}, scaled to 0 to 1"]
    if found:
        some = f"in {len(search.extents)} of them" if search.partial else "in all splits"
        parts.append(
            f"found from the values {lowest:.15g} to {highest:.15g} {some}; --pixel-range LOW:HIGH "
            "sets another range"
        )
    elif lowest < pixel_range.low or highest > pixel_range.high:
        parts.append(f"values outside, of {lowest:.15g} to {highest:.15g}, become the nearer one")
    if search.eight_bits:
        parts.append(f"{search.eight_bits} images have 8 bits, and 0 to 255")
    return "; ".join(parts)
