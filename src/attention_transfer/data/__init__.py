"""The images: embedded ones, CIFAR, and the batches made of them."""

from pathlib import Path
from typing import cast

from attention_transfer.data.images import (
    Augmentation,
    Batch,
    DataSet,
    Images,
    ImageSet,
    View,
    as_input,
    batch_bounds,
    batches,
    epoch_order,
    hold_out,
)
from attention_transfer.errors import InputError, nearest

__all__ = [
    "Augmentation",
    "Batch",
    "DataSet",
    "ImageSet",
    "Images",
    "View",
    "as_input",
    "batch_bounds",
    "batches",
    "epoch_order",
    "hold_out",
    "load_data",
]


def load_data(
    data: str, *, validation: float = 0.1, data_seed: int = 0, download: bool = False
) -> DataSet:
    """DATA as users write it, with a validation split held out of the training images.

    Args:
        data: ``cluttered-digits``, ``cifar10[:DIR]`` or ``cifar100[:DIR]``; DIR is ``data`` by
            default.
        validation: the share of each class's training images to hold out.
        data_seed: of the scenes and of the split.
        download: fetch what is missing.

    Raises:
        InputError: an unknown name, or images that cannot be had.
    """
    name, _, folder = data.partition(":")
    if name == "cluttered-digits" and not folder:
        from attention_transfer.data.cluttered_digits import cluttered_digits

        found = cluttered_digits(data_seed)
    elif name in ("cifar10", "cifar100"):
        from attention_transfer.data.cifar import CifarName, cifar

        found = cifar(cast("CifarName", name), Path(folder or "data"), download)
    else:
        known = ["cluttered-digits", "cifar10", "cifar100"]
        raise InputError(f"unknown data {data!r}; {nearest(data, known)}")
    return hold_out(found, validation, data_seed)
