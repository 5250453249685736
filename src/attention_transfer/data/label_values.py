"""Labels as data sets have them, numbers or names, one or several an image, as class indices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.classes import abridged
from attention_transfer.errors import InputError

__all__ = ["CodedLabels", "as_labels", "code_labels", "is_multi_label"]

MISSING = -1
"""The class index of a sample without a label, also in data sets of others."""

NO_LABEL = int(np.iinfo(np.int64).min)
"""What :func:`as_labels` returns for None, which is no label also where -1 is one."""


class CodedLabels(NamedTuple):
    """The classes of a data set, and the labels of its splits as indices into them."""

    class_names: tuple[str, ...]
    labels: dict[str, Tensor]
    """By split, without splits that have no labels: (N,) int64; or (N, classes) float32, 1 where
    an image is of a class.
    """
    notices: list[str]


def is_multi_label(labels: Tensor) -> bool:
    """Return whether labels mark several classes of each image, (N, classes)."""
    return labels.dim() == 2


def code_labels(
    name: str,
    raw: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    offset: int | None = None,
) -> CodedLabels:
    """Turn labels of any kind into class indices, and say so where they are not indices already.

    Whole numbers that are indices (0 to N - 1) stay as they are. Other numbers become classes in
    their order, and names in the order of their text. Lists of names or numbers are several
    classes of one image. A split whose labels are all missing (-1, None or empty) is left out.

    Args:
        name: of the data, for messages.
        raw: the labels of each split, ``train`` among them.
        class_names: by class index, if the data set knows them.
        offset: the label of the first class, which is subtracted from labels that are numbers;
            they are class indices then, also where there are gaps.

    Raises:
        InputError: labels of no known kind, outside the classes, or missing of some samples.

    Example:
        >>> coded = code_labels("own", {"train": [3, 7, 3], "test": [7, 3]})
        >>> coded.class_names, coded.labels["train"].tolist()
        (('3', '7'), [0, 1, 0])
    """
    arrays = {split: as_labels(labels) for split, labels in raw.items()}
    kinds = {array.dtype.kind for array in arrays.values() if not _all_missing(array)}
    notices = [
        f"{name} {split} has no labels (all of them are -1 or empty): it is left out"
        for split, array in arrays.items()
        if _all_missing(array) and split != "train"
    ]
    labelled = {split: array for split, array in arrays.items() if not _all_missing(array)}
    if "train" not in labelled:
        raise InputError(f"{name} train has no labels, expected one of each image to train on")
    _check_all_labelled(name, labelled, class_names, offset)
    if kinds == {"i"}:
        coded = _of_numbers(name, labelled, class_names, offset)
    elif offset is not None:
        raise InputError(
            f"a label offset of {offset} is for labels that are numbers, and {name} has others; "
            "leave it out"
        )
    elif "O" in kinds:
        coded = _of_several(name, labelled, class_names)
    elif kinds == {"U"}:
        coded = _of_names(name, labelled, class_names)
    else:
        raise InputError(f"{name} has numbers as labels in one split and names in another")
    return coded._replace(notices=[*notices, *coded.notices])


def as_labels(labels: Any) -> NDArray[Any]:
    """Return labels as int64, as text, or as an array of tuples of several classes each.

    Those that are missing are NO_LABEL or empty.

    Raises:
        ValueError: they are none of these.

    >>> as_labels([2.0, None]).tolist(), as_labels(["cat", "dog"]).tolist()
    ([2, -9223372036854775808], ['cat', 'dog'])
    """
    if isinstance(labels, Tensor):
        labels = labels.cpu().numpy()
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        if any(isinstance(label, list | tuple | set | frozenset) for label in labels):
            several = np.empty(len(labels), dtype=object)
            several[:] = [_several(label) for label in labels]
            return several
        named = any(isinstance(label, str) and label for label in labels)
        missing: Any = "" if named else NO_LABEL
        labels = [missing if _is_missing(label) else label for label in labels]
        if named and not all(isinstance(label, str) for label in labels):
            raise ValueError("numbers and names together")
    array = np.asarray(labels)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    if array.ndim == 1 and array.dtype.kind == "U":
        return array
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.float64(NO_LABEL), array)
    if array.ndim != 1 or not np.array_equal(array, array.astype(np.int64)):
        raise ValueError(f"an array {array.shape} of {array.dtype}, expected whole numbers (N,)")
    return array.astype(np.int64)


def _several(label: Any) -> tuple[str, ...]:
    values = label if isinstance(label, list | tuple | set | frozenset) else [label]
    return tuple(sorted({str(value) for value in values if not _is_missing(value)}))


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and label != label) or label == ""


def _all_missing(array: NDArray[Any]) -> bool:
    if array.dtype.kind == "O":
        return not any(array)
    missing = ("",) if array.dtype.kind == "U" else (MISSING, NO_LABEL)
    return bool(np.isin(array, missing).all())


def _check_all_labelled(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    class_names: Sequence[str] | None,
    offset: int | None,
) -> None:
    """Raise an InputError if samples have no label: -1 is one beside 1 alone, or by the offset."""
    train = arrays["train"]
    signs = train.dtype.kind == "i" and set(train.tolist()) - {NO_LABEL} == {-1, 1}
    is_label = (signs and class_names is None and offset is None) or (offset or 0) < 0
    for split, array in arrays.items():
        if array.dtype.kind == "O":
            continue
        none = ("",) if array.dtype.kind == "U" else (NO_LABEL, *((MISSING,) * (not is_label)))
        count = int(np.isin(array, none).sum())
        if count:
            shown = " (-1)" if MISSING in none and MISSING in array else ""
            raise InputError(
                f"{name} {split} has {count} samples without a label{shown} among {len(array)}; "
                "give them one, or leave them out"
            )


def _of_numbers(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    class_names: Sequence[str] | None,
    offset: int | None,
) -> CodedLabels:
    values = np.unique(arrays["train"]).tolist()
    everywhere = np.unique(np.concatenate(list(arrays.values()))).tolist()
    notices: list[str] = []
    if offset is not None:
        notices = [f"{name}: class k is the label k + {offset}"] if offset else []
    elif class_names is not None:
        offset = 0
        if everywhere[0] == 1 and everywhere[-1] == len(class_names):
            offset = 1
            notices = [f"{name} has the labels 1 to {len(class_names)}: label k + 1 is class k"]
    elif everywhere == list(range(len(everywhere))):
        offset = 0
    else:
        return _of_numbers_with_gaps(name, arrays, values)
    names = tuple(class_names or map(str, range(offset, max(values) + 1)))
    for split, array in arrays.items():
        if array.min() < offset or array.max() >= offset + len(names):
            expected = f"class indices from 0 to {len(names) - 1}"
            if offset:
                most = offset + len(names) - 1
                expected = f"{offset} to {most}, as the label offset is {offset}"
            raise InputError(
                f"{name} {split} has labels from {int(array.min())} to {int(array.max())}, "
                f"expected {expected}"
            )
    absent = [names[index] for index in range(len(names)) if index + offset not in set(values)]
    if absent:
        notices.append(
            f"{name} train has no images of {len(absent)} of {len(names)} classes: "
            f"{abridged(absent)}"
        )
    labels = {split: torch.from_numpy(array - offset) for split, array in arrays.items()}
    return CodedLabels(names, labels, notices)


def _of_numbers_with_gaps(
    name: str, arrays: Mapping[str, NDArray[Any]], values: list[int]
) -> CodedLabels:
    """Code numbers that are no class indices: in their order, by those of the training images."""
    texts = [str(value) for value in values]
    labels = {
        split: _indices(f"{name} {split}", array, values, f"{name} train")
        for split, array in arrays.items()
    }
    keep = "" if values[0] < 0 else f"; --label-offset {min(values[0], 1)} keeps them as indices"
    notice = (
        f"{name} has the labels {abridged(texts)}: they are the {len(values)} classes "
        f"0 to {len(values) - 1}, in this order{keep}"
    )
    return CodedLabels(tuple(texts), labels, [notice])


def _of_names(
    name: str, arrays: Mapping[str, NDArray[Any]], class_names: Sequence[str] | None
) -> CodedLabels:
    names = list(class_names or sorted({str(label) for label in arrays["train"]}))
    labels = {
        split: _indices(f"{name} {split}", array, names, f"{name} train")
        for split, array in arrays.items()
    }
    return CodedLabels(tuple(names), labels, [])


def _indices(where: str, array: NDArray[Any], values: Sequence[Any], known: str) -> Tensor:
    positions = {value: index for index, value in enumerate(values)}
    found = [positions.get(label, MISSING) for label in array.tolist()]
    unknown = sorted(
        {str(label) for label, index in zip(array.tolist(), found, strict=True) if index < 0}
    )
    if unknown:
        raise InputError(
            f"{where} has {len(unknown)} classes that {known} has not: {abridged(unknown)}; "
            "expected the same classes in every split"
        )
    return torch.tensor(found, dtype=torch.int64)


def _of_several(
    name: str, arrays: Mapping[str, NDArray[Any]], class_names: Sequence[str] | None
) -> CodedLabels:
    """Code labels of several classes: 1 where an image is of a class, in the order of names."""
    several = {
        split: array
        if array.dtype.kind == "O"
        else [(str(label),) if label else () for label in array]
        for split, array in arrays.items()
    }
    found = {label for labels in several["train"] for label in labels}
    numbers = all(label.isdecimal() for label in found)
    by_index = numbers and class_names is not None
    names = (
        [str(index) for index in range(len(class_names or ()))]
        if by_index
        else list(
            class_names
            or sorted(found, key=(lambda label: (int(label), label)) if numbers else None)
        )
    )
    positions = {label: index for index, label in enumerate(names)}
    coded = {}
    for split, labels in several.items():
        unknown = sorted({label for each in labels for label in each} - positions.keys())
        if unknown:
            raise InputError(
                f"{name} {split} has {len(unknown)} classes that {name} train has not: "
                f"{abridged(unknown)}; expected the same classes in every split"
            )
        marks = np.zeros((len(labels), len(names)), dtype=np.float32)
        for row, each in zip(marks, labels, strict=True):
            row[[positions[label] for label in each]] = 1
        coded[split] = torch.from_numpy(marks)
    notice = f"{name} has several classes an image: each is learned by itself, of {len(names)}"
    return CodedLabels(tuple(class_names or names), coded, [notice])
