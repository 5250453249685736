"""Data sets of labelled images, their augmentation, and batches of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attention_transfer.data.augmentation import WithAugmentation
from attention_transfer.data.classes import order_notices, with_class_order
from attention_transfer.data.columns import Columns
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
from attention_transfer.data.names import loader
from attention_transfer.data.pixel_ranges import on_one_scale
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.data.splitting import hold_out_test, hold_out_validation
from attention_transfer.data.unread_files import naming_unread
from attention_transfer.data.views import Augmentation, Transform
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import PixelRange
from attention_transfer.waiting import waiting_for

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
    columns: str | Mapping[str, str] | None = None,
    label_offset: int | None = None,
    class_order: str | None = None,
    pixel_range: tuple[float, float] | None = None,
    default_pixel_range: tuple[float, float] | None = None,
) -> DataSet:
    """Load the images that DATA names, and hold a validation split out of the training images.

    Args:
        data: ``cluttered-digits``; ``cifar10[:DIR]`` or ``cifar100[:DIR]``, where DIR is ``data``
            by default; ``folder:DIR``, a folder of images by class; ``imagenet:DIR``, the same in
            ImageNet's layout; ``csv:FILE``, a table of images and labels; ``hf:NAME``,
            ``hf:NAME:CONFIGURATION`` or ``hf:FILE.parquet``, a data set of Hugging Face's library;
            or ``package.module:factory``. Or objects: a :class:`DataSet`; a map-style dataset, a
            pair (train, test) or a dictionary with ``train`` and perhaps ``test`` and
            ``validation``, as :func:`from_datasets` takes them.
        validation: the share of each class's training images to hold out, if there is no
            validation split.
        data_seed: seed of the embedded scenes and of the splits.
        download: fetch missing archives.
        image_size: height and width in pixels to bring images to that are decoded one by one.
        default_size: the same, for data that name no size of their own, without ``image_size``.
        masks: a folder with masks of the objects, laid out like the folder of images.
        columns: the columns of a table or the keys of samples, such as
            ``image=file,label=class,split=set``; None: usual names.
        label_offset: the label of the first class, for labels that are numbers: the class index is
            the label less this; None: the labels that are there are the classes, in their order.
        class_order: ``string``, ``natural`` or a class map file; see
            :func:`~attention_transfer.data.classes.with_class_order`; None: the data set's own
            order, for folders that of their names as text.
        pixel_range: the values that become 0 and 1, of images of more than 8 bits; None: the
            default, or one range for the whole set, found from its images.
        default_pixel_range: that of a network that was trained with it.

    Raises:
        InputError: an unknown name, images that cannot be read, or a split without any.
    """
    load, folder = loader(data, download, Columns.parse(columns), label_offset)
    with waiting_for(f"reading the data{f' {data}' if isinstance(data, str) else ''}"):
        result = load(image_size or default_size, data_seed)
    for split, images in (("training", result.train), ("test", result.test)):
        if len(images) == 0:
            raise InputError(f"{result.name} has no {split} images, expected at least one")
    if class_order is not None:
        result = with_class_order(result, class_order)
    elif not isinstance(data, DataSet):
        notices = (*result.notices, *order_notices(result.class_names))
        result = replace(result, notices=notices)
    if image_size is not None:
        result = _resized(result, image_size)
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
    with naming_unread(result.notices):
        return hold_out_validation(result, validation, data_seed)


def _resized(data: DataSet, size: tuple[int, int]) -> DataSet:
    """Return a data set whose images are decoded at a size.

    Raises:
        InputError: its images are in memory, at another size.
    """
    if data.train.size == size:
        return data
    result = data.resized(size, "bilinear")
    if result.train.size != size:
        height, width = result.train.size
        raise InputError(
            f"{result.name} images are {height}x{width} and in memory; leave out the image size"
        )
    return result
