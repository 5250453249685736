"""Which images are trained on and which judged: by the names of splits, or shares that are held
out, the same of each class, chosen by a seed.
"""

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

NAMES = {
    "train": ("train", "training", "train_set", "training_set"),
    "validation": ("val", "valid", "validation", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set", "testing_set"),
}
"""What people call each split."""

TEST_SHARE = 0.2

Kind = TypeVar("Kind", bound=Images)
Part = TypeVar("Part")


def by_split(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts of a set that are splits, as train, validation and test. With one of the last two,
    it is the test.

    >>> by_split({"training": 1, "val": 2, "notes": 3})
    {'train': 1, 'test': 2}
    """
    found = {
        split: parts[name] for split, names in NAMES.items() for name in names if name in parts
    }
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found


def hold_out_validation(data: DataSet, share: float, data_seed: int) -> DataSet:
    """The data set with a share of each class's training images moved to validation.

    Raises:
        InputError: a share that leaves nothing to train or to validate on.
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
    """A fifth of each class for the test, at least one image; the rest to train.

    Returns:
        The images to train on, and those of the test.

    Raises:
        InputError: a class has too few images to share.
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
    labels: Tensor, classes: int, key: tuple[str, int], held_of: Callable[[int], int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices kept and held out, each in ascending order."""
    of_sample = labels.numpy()
    order = permutation(len(of_sample), *key)
    own = [order[of_sample[order] == label] for label in range(classes)]
    held = np.sort(np.concatenate([indices[: held_of(len(indices))] for indices in own]))
    return np.setdiff1d(np.arange(len(of_sample)), held), held
