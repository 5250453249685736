"""Data sets of Hugging Face's hub, or of folders that its library reads."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attention_transfer.data.columns import Columns
from attention_transfer.data.corrupt_images import faults, skipped
from attention_transfer.data.datasets import data_set_of_splits
from attention_transfer.data.images import DataSet
from attention_transfer.data.splitting import split_of
from attention_transfer.errors import InputError, first_line

__all__ = ["hugging_face_data"]


def hugging_face_data(
    name: str,
    size: tuple[int, int],
    data_seed: int = 0,
    *,
    columns: Columns | None = None,
    label_offset: int | None = None,
) -> DataSet:
    """Load a data set of the Hugging Face hub, or of a folder that its library reads.

    Args:
        name: the name on the hub; a folder that the library reads, also one that its
            ``save_to_disk`` wrote; or a Parquet file. With the name of a configuration after a
            colon, if there are several.
        size: height and width in pixels to bring images to.
        data_seed: seed of the test split, if there is none: a fifth of each class.
        columns: the names of the columns of images and labels, and of splits in a set of one.
        label_offset: see :func:`~attention_transfer.data.label_values.code_labels`.

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
        splits = _loaded(datasets, name)
    except Exception as error:
        reason = first_line(error)
        raise InputError(
            f"the data set {name!r} cannot be loaded ({type(error).__name__}: {reason}); check its "
            "name and the network"
        ) from None
    columns = columns or Columns()
    if columns.split is not None:
        splits = _by_column(name, splits, columns)
    encoded = {split: _encoded(datasets, part) for split, part in splits.items()}
    data = data_set_of_splits(
        name, encoded, size, data_seed, columns=columns, label_offset=label_offset
    )
    return _without_corrupt(data)


def _loaded(library: Any, name: str) -> Mapping[str, Any]:
    """Return the splits of a data set on the hub, in a folder or in a Parquet file."""
    place = Path(name)
    if place.suffix.lower() == ".parquet" and place.is_file():
        return dict(library.load_dataset("parquet", data_files={"train": str(place)}))
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        saved = library.load_from_disk(str(place))
        return saved if isinstance(saved, Mapping) else {"train": saved}
    path, _, configuration = name.partition(":")
    splits: Mapping[str, Any] = library.load_dataset(path, configuration or None)
    return splits


def _by_column(name: str, splits: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the splits that a column of a data set of one split names."""
    if len(splits) > 1:
        raise InputError(
            f"{name} has the splits {', '.join(splits)} already; leave split={columns.split} out"
        )
    (whole,) = splits.values()
    values = whole[columns.require(name, "split", whole.column_names)]
    unknown = [str(value) for value in dict.fromkeys(values) if split_of(value) is None]
    if unknown:
        raise InputError(
            f"{name} has {', '.join(unknown[:5])} in its column {columns.split!r}, expected train, "
            "validation or test"
        )
    return {
        value: whole.select([index for index, each in enumerate(values) if each == value])
        for value in dict.fromkeys(values)
    }


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
        reasons = faults(
            [partial(images.content, index) for index in range(len(images))], total, data.channels
        )
        corrupt += [(images.name(index), reason) for index, reason in enumerate(reasons) if reason]
        whole = [index for index, reason in enumerate(reasons) if reason is None]
        splits[name] = images.subset(np.array(whole, dtype=np.int64))
    notices = (*data.notices, *skipped(corrupt, total))
    return replace(data, **splits, notices=notices, corrupt=tuple(corrupt))
