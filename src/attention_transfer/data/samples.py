"""The samples of users' map-style datasets: what holds the image, the label and the class names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from attention_transfer.data.columns import Columns
from attention_transfer.errors import InputError

__all__ = ["class_names_of", "is_map_style", "labels_of", "reading", "sample_columns"]


def is_map_style(dataset: Any) -> bool:
    """Return whether a dataset has a length, and samples by index."""
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def sample_columns(name: str, dataset: Any, columns: Columns | None) -> tuple[str | int, str | int]:
    """Check that a split's dataset has samples, and return the keys of image and label in them."""
    if not is_map_style(dataset):
        raise InputError(
            f"{name} is a {type(dataset).__name__}, expected a map-style dataset, with a length "
            "and samples by index"
        )
    if len(dataset) == 0:
        raise InputError(f"{name} has no samples, expected at least one")
    with reading(name):
        return _columns(name, dataset[0], columns)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an exception that a user's dataset raises inside the block into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name} is no dataset of images and class indices: {reason}") from error


def _columns(name: str, sample: Any, columns: Columns | None) -> tuple[str | int, str | int]:
    """Return the keys of image and label in a sample."""
    if isinstance(sample, Mapping):
        names = [key for key in sample if isinstance(key, str)]
        wanted = columns or Columns()
        return wanted.require(name, "image", names), wanted.require(name, "label", names)
    if isinstance(sample, Sequence) and len(sample) >= 2 and columns is None:
        return 0, 1
    but = ", so that columns have no names" if columns is not None else ""
    raise InputError(
        f"a sample of {name} is a {type(sample).__name__}{but}, expected (image, label), or a "
        "dictionary with image and label"
    )


def labels_of(dataset: Any, column: str | int) -> Any:
    """Return all labels, without decoding an image where the dataset allows."""
    for attribute in ("targets", "labels"):
        known = getattr(dataset, attribute, None)
        if isinstance(column, int) and isinstance(known, Sequence | np.ndarray | Tensor):
            if len(known) != len(dataset):
                continue
            # Samples may have other labels than the attribute, as a target_transform makes.
            checked = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(int)).tolist()
            same = all(bool(known[index] == dataset[index][column]) for index in checked)
            if same and getattr(dataset, "target_transform", None) is None:
                return known
    if isinstance(column, str) and column in getattr(dataset, "column_names", ()):
        return dataset[column][:]
    return [dataset[index][column] for index in range(len(dataset))]


def class_names_of(dataset: Any, label: str | int) -> tuple[str, ...] | None:
    """Return the class names that a dataset knows; None if it knows none."""
    features = getattr(dataset, "features", None) or {}
    feature = features.get(label)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    names = names or getattr(dataset, "classes", None)
    return tuple(map(str, names)) if names else None
