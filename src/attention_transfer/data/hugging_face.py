"""Data sets of Hugging Face's hub, or of folders that its library reads."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from attention_transfer.data.corrupt_images import faults, skipped
from attention_transfer.data.datasets import data_set_of_splits
from attention_transfer.data.images import DataSet
from attention_transfer.errors import InputError, first_line

__all__ = ["hugging_face_data"]


def hugging_face_data(name: str, size: tuple[int, int], data_seed: int = 0) -> DataSet:
    """Load a data set of the Hugging Face hub, or of a folder that its library reads.

    Args:
        name: the name on the hub, or a path; with the name of a configuration after a colon, if
            there are several.
        size: height and width in pixels to bring images to.
        data_seed: seed of the test split, if there is none: a fifth of each class.

    Raises:
        InputError: the extra ``datasets`` is not installed, the data set cannot be loaded, or has
            no column of images or of class labels.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "hf:NAME needs Hugging Face's library: pip install 'attention-transfer[datasets]'"
        ) from None
    try:
        path, _, configuration = name.partition(":")
        splits = datasets.load_dataset(path, configuration or None)
    except Exception as error:
        reason = first_line(error)
        raise InputError(
            f"the data set {name!r} cannot be loaded ({type(error).__name__}: {reason}); check its "
            "name and the network"
        ) from None
    encoded = {split: _encoded(datasets, part) for split, part in splits.items()}
    return _without_corrupt(data_set_of_splits(name, encoded, size, data_seed))


def _encoded(library: Any, dataset: Any) -> Any:
    """Make a data set of Hugging Face's return images as the bytes of their files."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, library.Image):
            dataset = dataset.cast_column(column, library.Image(decode=False))
    return dataset


def _without_corrupt(data: DataSet) -> DataSet:
    """Skip the corrupt images of files, with a notice for each.

    Raises:
        InputError: there are too many.
    """
    splits: dict[str, Any] = {name: getattr(data, name) for name in ("train", "validation", "test")}
    if not splits["train"].in_files:
        return data
    total = sum(len(images) for images in splits.values())
    corrupt: list[tuple[str, str]] = []
    for name, images in splits.items():
        reasons = faults([partial(images.content, index) for index in range(len(images))], total)
        corrupt += [(images.name(index), reason) for index, reason in enumerate(reasons) if reason]
        whole = [index for index, reason in enumerate(reasons) if reason is None]
        splits[name] = images.subset(np.array(whole, dtype=np.int64))
    notices = (*data.notices, *skipped(corrupt, total))
    return replace(data, **splits, notices=notices, corrupt=tuple(corrupt))
