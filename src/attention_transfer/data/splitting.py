"""Training, validation and test splits: by name, or held out as a share of each class by a seed."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.images import DataSet, Images
from attention_transfer.data.randomness import permutation
from attention_transfer.errors import InputError

__all__ = [
    "hold_out_test",
    "hold_out_validation",
    "named_splits",
    "split_of",
    "with_test_split",
]

_WORDS = {
    "train": "train|training",
    "validation": "val|valid|validation|dev|devel|development|eval|evaluation",
    "test": "test|testing|holdout|hold_out",
}
_SPLIT_NAME = re.compile(
    f"(?:{'|'.join(f'(?P<{split}>{words})' for split, words in _WORDS.items())})"
    r"(?:_?(?:set|split|data|images))?_?\d*"
)
"""The names that users give each split."""

TEST_SHARE = 0.2
"""Share of each class that is held out for a missing test split."""

Kind = TypeVar("Kind", bound=Images)
Part = TypeVar("Part")
Key = TypeVar("Key", bound=Hashable)


def split_of(name: object) -> str | None:
    """Return the split that a name means: train, validation or test; None if it means none.

    Case, underscores and a number at the end do not matter.

    >>> [split_of(name) for name in ("Training", "val2017", "dev", "test1", "hold-out", "cat")]
    ['train', 'validation', 'validation', 'test', 'test', None]
    """
    found = _SPLIT_NAME.fullmatch(re.sub(r"[-_ .]+", "_", str(name).lower().strip()))
    return found.lastgroup if found else None


def named_splits(what: str, names: Iterable[Key]) -> dict[str, Key]:
    """Return what each split is called, of the names that mean one.

    Raises:
        InputError: two names mean the same split.

    >>> named_splits("photos", ["training", "dev", "notes"])
    {'train': 'training', 'validation': 'dev'}
    """
    splits: dict[str, Key] = {}
    for name in names:
        split = split_of(name)
        if split in splits:
            raise InputError(
                f"{what} has both {splits[split]} and {name}, which are each a {split} split; "
                "keep one of them there"
            )
        if split is not None:
            splits[split] = name
    return splits


def with_test_split(splits: dict[str, Part]) -> dict[str, Part]:
    """Return the splits, of which validation becomes the test split if there is none.

    >>> with_test_split({"train": 1, "validation": 2})
    {'train': 1, 'test': 2}
    """
    if "test" in splits or "validation" not in splits:
        return splits
    return {{"validation": "test"}.get(split, split): part for split, part in splits.items()}


def hold_out_validation(data: DataSet, share: float, data_seed: int) -> DataSet:
    """Return the data set with a share of each class's training images moved to validation.

    Where that rounds to none of every class, or would leave a class without training images, the
    share of the whole set is spread over the classes, of each of which one image at least is left.

    Raises:
        InputError: the share leaves no images to train or to validate on.
    """
    groups = _groups(data.train.labels)
    counts = np.bincount(groups)
    parts = np.array([round(share * int(count)) for count in counts])
    notices = data.notices
    if not parts.any() or bool((parts >= counts)[counts > 0].any()):
        parts = _spread(share, counts, ("validation classes", data_seed))
        if parts.any():
            notices += (_spread_notice("validation", parts, counts, share),)
    kept, held = _held_out(groups, ("validation", data_seed), parts)
    if len(held) == 0 or len(kept) == 0:
        raise InputError(
            f"a validation share of {share} of {len(data.train)} training images leaves "
            f"{len(kept)} to train and {len(held)} to validate on; choose another --validation"
        )
    train, validation = data.train.subset(kept), data.train.subset(held)
    return replace(data, train=train, validation=validation, notices=notices)


def hold_out_test(images: Kind, class_names: Sequence[str], data_seed: int) -> tuple[Kind, Kind]:
    """Hold out a fifth of each class, at least one image, for the test.

    Returns:
        The training images, and the test images.

    Raises:
        InputError: a class has one or two images.
    """
    labels = images.labels
    if labels.dim() == 1:
        counts = np.bincount(labels.numpy(), minlength=len(class_names))
    else:
        counts = labels.numpy().sum(0).astype(np.int64)
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if 0 < count < 3:
            raise InputError(
                f"class {name!r} has {count} images, expected at least 3: to train, to validate "
                "and to test on; add some, or give a train and a test split"
            )
    groups = _groups(labels)
    sizes = np.bincount(groups)
    least = 1 if labels.dim() == 1 else 0
    parts = np.array([max(least, round(TEST_SHARE * int(size))) for size in sizes])
    kept, held = _held_out(groups, ("test", data_seed), parts)
    return images.subset(kept), images.subset(held)


def _groups(labels: Tensor) -> NDArray[np.int64]:
    """Return the class of each image by which a set is split: of several, its rarest.

    Images of no class are a group of their own.
    """
    if labels.dim() == 1:
        return np.asarray(labels, dtype=np.int64)
    marks = labels.numpy() > 0
    rarity = np.where(marks, marks.sum(0), len(marks) + 1)
    groups = np.where(marks.any(1), rarity.argmin(1), marks.shape[1])
    return np.asarray(groups, dtype=np.int64)


def _spread(share: float, counts: NDArray[np.int64], key: tuple[str, int]) -> NDArray[np.int64]:
    """Return how many images each class gives of a share of the whole set, by largest remainder.

    Classes of equal remainders come in a random order; each keeps one image at least.
    """
    total = int(share * int(counts.sum()) + 1e-9)
    exact = share * counts
    most = np.maximum(counts - 1, 0)
    parts: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), most)
    shuffled = permutation(len(counts), *key)
    order = shuffled[np.argsort(-(exact - parts)[shuffled], kind="stable")]
    while (missing := total - int(parts.sum())) > 0:
        open_classes = order[parts[order] < most[order]][:missing]
        if len(open_classes) == 0:
            break
        parts[open_classes] += 1
    return parts


def _spread_notice(
    split: str, parts: NDArray[np.int64], counts: NDArray[np.int64], share: float
) -> str:
    return (
        f"classes are too small for a {split} share of {share:g} of each: it holds "
        f"{int(parts.sum())} images of {int((parts > 0).sum())} of {int((counts > 0).sum())} "
        "classes, and every class has images left to train on"
    )


def _held_out(
    groups: NDArray[np.int64], key: tuple[str, int], parts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices to keep and those to hold out, each in ascending order."""
    order = permutation(len(groups), *key)
    chosen = [order[groups[order] == group][:part] for group, part in enumerate(parts.tolist())]
    held_out = np.sort(np.concatenate([*chosen, np.zeros(0, dtype=np.int64)])).astype(np.int64)
    return np.setdiff1d(np.arange(len(groups)), held_out), held_out
