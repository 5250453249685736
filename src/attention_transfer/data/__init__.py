"""Data sets of labelled images, their augmentation, and batches of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from attention_transfer.data.augmentation import WithAugmentation
from attention_transfer.data.datasets import from_datasets
from attention_transfer.data.images import DataSet, Images, ImageSet
from attention_transfer.data.loading import (
    Batch,
    EpochPass,
    as_input,
    batch_bounds,
    batches,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.data.pixel_ranges import on_one_scale
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.data.splitting import hold_out_test, hold_out_validation
from attention_transfer.data.views import Augmentation, Transform
from attention_transfer.errors import InputError, nearest
from attention_transfer.preprocessing import PixelRange

__all__ = [
    "Augmentation",
    "AugmentedView",
    "Batch",
    "DataSet",
    "EpochPass",
    "ImageSet",
    "Images",
    "Transform",
    "WithAugmentation",
    "as_input",
    "batch_bounds",
    "batches",
    "epoch_order",
    "from_datasets",
    "hold_out_test",
    "hold_out_validation",
    "load_data",
    "resolve_workers",
    "stream",
]


def load_data(
    data: Any,
    *,
    validation: float = 0.1,
    data_seed: int = 0,
    download: bool = False,
    image_size: tuple[int, int] | None = None,
    default_size: tuple[int, int] = (224, 224),
    masks: Path | None = None,
    pixel_range: tuple[float, float] | None = None,
    default_pixel_range: tuple[float, float] | None = None,
) -> DataSet:
    """Load the images that DATA names, and hold a validation split out of the training images.

    Args:
        data: ``cluttered-digits``; ``cifar10[:DIR]`` or ``cifar100[:DIR]``, where DIR is ``data``
            by default; ``folder:DIR``, a folder of images by class; ``imagenet:DIR``, the same in
            ImageNet's layout; ``hf:NAME`` or ``hf:NAME:CONFIGURATION``, a data set of Hugging
            Face's; or ``package.module:factory``. Or objects: a :class:`DataSet`; a map-style
            dataset, a pair (train, test) or a dictionary with ``train`` and perhaps ``test`` and
            ``validation``, as :func:`from_datasets` takes them.
        validation: the share of each class's training images to hold out, if there is no
            validation split.
        data_seed: seed of the embedded scenes and of the splits.
        download: fetch missing archives.
        image_size: height and width in pixels to bring images to that are decoded one by one.
        default_size: the same, for data that name no size of their own, without ``image_size``.
        masks: a folder with masks of the objects, laid out like the folder of images.
        pixel_range: the values that become 0 and 1, of images of more than 8 bits; None: the
            default, or one range for the whole set, found from its images.
        default_pixel_range: that of a network that was trained with it.

    Raises:
        InputError: an unknown name, images that cannot be read, or a split without any.
    """
    load, folder = _loader(data, download)
    result = load(image_size or default_size, data_seed)
    for split, images in (("training", result.train), ("test", result.test)):
        if len(images) == 0:
            raise InputError(f"{result.name} has no {split} images, expected at least one")
    if image_size is not None and image_size != result.train.size:
        result = result.resized(image_size, "bilinear")
        if result.train.size != image_size:
            height, width = result.train.size
            raise InputError(
                f"{result.name} images are {height}x{width} and in memory; leave out the image size"
            )
    if masks is not None:
        from attention_transfer.data.masks import with_masks

        result = with_masks(result, folder, masks)
    result = on_one_scale(
        result,
        pixel_range and PixelRange(*pixel_range),
        default_pixel_range and PixelRange(*default_pixel_range),
    )
    if len(result.validation):
        return result
    return hold_out_validation(result, validation, data_seed)


_Load = Callable[[tuple[int, int], int], DataSet]
"""From height and width in pixels and a data seed to the data."""


def _loader(data: Any, download: bool) -> tuple[_Load, Path]:
    """Return the function that loads DATA, and the folder that its name holds, if any.

    Modules are imported here, because torchvision's data sets and Hugging Face's library take long.
    """
    if not isinstance(data, str):
        from attention_transfer.data.datasets import as_data_set

        return partial(as_data_set, data, "data"), Path()
    name, _, rest = data.partition(":")
    folder = Path(rest).expanduser()
    if name == "cluttered-digits" and not rest:
        from attention_transfer.data.cluttered_digits import cluttered_digits

        return lambda size, data_seed: cluttered_digits(data_seed), folder
    if name in ("cifar10", "cifar100"):
        from attention_transfer.data.cifar import CifarName, cifar

        archive = folder if rest else Path("data")
        return lambda size, data_seed: cifar(cast("CifarName", name), archive, download), folder
    if name in ("folder", "imagenet") and rest:
        from attention_transfer.data.folders import check_imagenet_layout, folder_data

        if name == "imagenet":
            check_imagenet_layout(folder)
        return partial(folder_data, folder), folder
    if name == "hf" and rest:
        from attention_transfer.data.hugging_face import hugging_face_data

        return partial(hugging_face_data, rest), folder
    if rest and name.replace(".", "_").isidentifier():
        from attention_transfer.data.datasets import factory_data

        return partial(factory_data, data), folder
    known = ["cluttered-digits", "cifar10", "cifar100", "folder:DIR", "imagenet:DIR", "hf:NAME"]
    raise InputError(f"unknown data {data!r}; {nearest(data, known)}")
