"""Training, validation and test splits: by name, or held out as a share of each class by a seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.images import DataSet, Images
from attention_transfer.data.randomness import permutation
from attention_transfer.errors import InputError

__all__ = ["by_split", "hold_out_test", "hold_out_validation"]

SPLIT_NAMES = {
    "train": ("train", "training", "train_set", "training_set"),
    "validation": ("val", "valid", "validation", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set", "testing_set"),
}
"""The names that users give each split."""

TEST_SHARE = 0.2
"""Share of each class that is held out for a missing test split."""

Kind = TypeVar("Kind", bound=Images)
Part = TypeVar("Part")


def by_split(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Return the splits of a data set under the names train, validation and test.

    A validation split without a test split becomes the test split.

    >>> by_split({"training": 1, "val": 2, "notes": 3})
    {'train': 1, 'test': 2}
    """
    splits = {
        split: parts[name]
        for split, names in SPLIT_NAMES.items()
        for name in names
        if name in parts
    }
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    return splits


def hold_out_validation(data: DataSet, share: float, data_seed: int) -> DataSet:
    """Return the data set with a share of each class's training images moved to validation.

    Raises:
        InputError: the share leaves no images to train or to validate on.
    """
    kept, held = _by_class(
        data.train.labels,
        len(data.class_names),
        ("validation", data_seed),
        lambda count: round(share * count),
    )
    if len(held) == 0 or len(kept) == 0:
        raise InputError(
            f"a validation share of {share} of {len(data.train)} training images leaves "
            f"{len(kept)} to train and {len(held)} to validate on; choose another --validation"
        )
    return replace(data, train=data.train.subset(kept), validation=data.train.subset(held))


def hold_out_test(images: Kind, class_names: Sequence[str], data_seed: int) -> tuple[Kind, Kind]:
    """Hold out a fifth of each class, at least one image, for the test.

    Returns:
        The training images, and the test images.

    Raises:
        InputError: a class has fewer than three images.
    """
    counts = np.bincount(images.labels.numpy(), minlength=len(class_names))
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count < 3:
            raise InputError(
                f"class {name!r} has {count} images, expected at least 3: to train, to validate "
                "and to test on; add some, or give a train and a test split"
            )
    kept, held = _by_class(
        images.labels,
        len(class_names),
        ("test", data_seed),
        lambda count: max(1, round(TEST_SHARE * count)),
    )
    return images.subset(kept), images.subset(held)


def _by_class(
    labels: Tensor, classes: int, key: tuple[str, int], held_out_count: Callable[[int], int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices to keep and those to hold out, each in ascending order."""
    classes_of_samples = labels.numpy()
    order = permutation(len(classes_of_samples), *key)
    by_class = [order[classes_of_samples[order] == label] for label in range(classes)]
    chosen = [indices[: held_out_count(len(indices))] for indices in by_class]
    held_out = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(classes_of_samples)), held_out), held_out
