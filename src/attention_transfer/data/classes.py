"""The order of a data set's classes: as text, natural, or that of a class map file."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from attention_transfer.data.augmentation import WithAugmentation
from attention_transfer.data.images import DataSet, Images
from attention_transfer.errors import InputError
from attention_transfer.files import read_bytes

__all__ = [
    "abridged",
    "natural_order",
    "normal_form",
    "order_notices",
    "with_class_order",
    "with_classes",
]

LARGEST_MAP = 8_000_000
"""Bytes of the largest class map file."""


def abridged(names: Sequence[str], count: int = 5) -> str:
    """Join the first few names, and the last of more.

    >>> abridged(["0", "1", "10", "11", "2"], count=3)
    '0, 1, 10, ..., 2'
    """
    if len(names) <= count + 1:
        return ", ".join(names)
    return ", ".join([*names[:count], "...", names[-1]])


def normal_form(name: str) -> str:
    """Return a name in Unicode's normal form C: systems write an umlaut as one or two characters.

    >>> normal_form("a\N{COMBINING DIAERESIS}") == "\N{LATIN SMALL LETTER A WITH DIAERESIS}"
    True
    """
    return unicodedata.normalize("NFC", name)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as timm does: numbers in them by value, and letters without regard to case.

    >>> natural_order(["10", "2", "b1", "A2"])
    ['2', '10', 'A2', 'b1']
    """

    def key(name: str) -> tuple[list[Any], str]:
        parts = re.split(r"(\d+)", name.lower())
        return [int(part) if index % 2 else part for index, part in enumerate(parts)], name

    names = list(names)
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names, key=key)


def order_notices(names: Sequence[str]) -> list[str]:
    """Return the notice that classes sorted as text have another natural order, if they do.

    >>> order_notices(["cat", "dog"])
    []
    """
    natural = natural_order(names)
    if list(names) != sorted(names) or natural == list(names):
        return []
    return [
        f"classes are in the order of their names as text, as torchvision has them "
        f"({abridged(names)}); for a network trained in natural order, as timm's are "
        f"({abridged(natural)}), give --class-order natural; --class-order string silences this"
    ]


def with_class_order(data: DataSet, order: str) -> DataSet:
    """Return a data set with its classes in another order.

    Args:
        data: the data set.
        order: ``string``, as torchvision sorts folders; ``natural``, as timm does; or a class map
            file: text with a name in each line, or JSON with a list of names or an object of
            names and indices. Classes of the file that the data lack are kept, without images.

    Raises:
        InputError: an unknown order, a file that is no class map, or one that lacks a class.
    """
    if order == "string":
        return with_classes(data, sorted(data.class_names))
    if order == "natural":
        return with_classes(data, natural_order(data.class_names))
    names = _class_map(Path(order))
    known = {normal_form(name) for name in names}
    missing = [name for name in data.class_names if normal_form(name) not in known]
    if missing:
        raise InputError(
            f"the class map {order} lacks {len(missing)} of the {len(data.class_names)} classes of "
            f"{data.name}: {abridged(missing)}; add them, or give another file"
        )
    empty = len(names) - len(data.class_names)
    result = with_classes(data, names)
    if empty:
        notice = f"{empty} of the {len(names)} classes of {order} have no images in {data.name}"
        result = replace(result, notices=(*result.notices, notice))
    return result


def with_classes(data: DataSet, names: Sequence[str]) -> DataSet:
    """Return a data set with its labels as indices into other class names, which hold all of its.

    >>> from attention_transfer.data import ImageSet
    >>> images = ImageSet(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    >>> data = DataSet("two", images, images, images, ("b", "a"), (0.5,) * 3, (0.2,) * 3)
    >>> with_classes(data, ["a", "b"]).train.labels.tolist()
    [1, 0]
    """
    if tuple(names) == data.class_names:
        return data
    positions = {normal_form(name): index for index, name in enumerate(names)}
    new = torch.tensor([positions[normal_form(name)] for name in data.class_names])
    return replace(
        data,
        train=_relabelled(data.train, new, len(names)),
        validation=_relabelled(data.validation, new, len(names)),
        test=_relabelled(data.test, new, len(names)),
        class_names=tuple(names),
    )


def _relabelled(images: Images, new: Tensor, classes: int) -> Images:
    """Return images whose class k is the class new[k]."""
    if isinstance(images, WithAugmentation):
        inner = _relabelled(images.images, new, classes)
        return replace(images, images=inner, classes=classes)
    if images.labels.dim() == 1:
        labels = new[images.labels.long()]
    else:
        labels = images.labels.new_zeros(len(images.labels), classes)
        labels[:, new] = images.labels
    held: Any = images
    if not is_dataclass(held) or isinstance(held, type):
        raise InputError(
            f"the labels of a {type(images).__name__} cannot be changed; give them in the order of "
            "the classes"
        )
    return cast("Images", replace(held, labels=labels))


def _class_map(path: Path) -> list[str]:
    """Return the names of a class map file, by class index."""
    path = path.expanduser()
    try:
        text = read_bytes(path, LARGEST_MAP).decode("utf-8-sig")
        names = _json_names(json.loads(text)) if path.suffix.lower() == ".json" else _lines(text)
    except OSError as error:
        raise InputError(
            f"class order {str(path)!r} is neither string nor natural, nor a class map file that "
            f"can be read ({error.strerror}); give one of the two, or a .txt or .json file"
        ) from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(
            f"{path} is no class map ({error}); expected a text file with a class in each line, or "
            'JSON such as ["cat", "dog"] or {"cat": 0, "dog": 1}'
        ) from None
    normal = [normal_form(name) for name in names]
    twice = [name for name, count in Counter(normal).items() if count > 1]
    if twice or len(names) < 2:
        fault = f"it has {abridged(twice)} twice" if twice else f"it has {len(names)} classes"
        raise InputError(f"{path} is no class map ({fault}); expected each of two or more once")
    return names


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_names(value: Any) -> list[str]:
    """Return the names of a JSON class map: a list, names to indices, or indices to names."""
    if isinstance(value, list):
        return [_name(entry) for entry in value]
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    by_name = all(isinstance(index, int) for index in value.values())
    pairs = value.items() if by_name else ((_name(name), index) for index, name in value.items())
    by_index = {int(index): str(name) for name, index in pairs}
    if len(by_index) < len(value) or sorted(by_index) != list(range(len(value))):
        raise ValueError(f"its indices are not 0 to {len(value) - 1}, each once")
    return [by_index[index] for index in range(len(by_index))]


def _name(entry: Any) -> str:
    """Return the class that an entry names: of a list, as ImageNet's class index has, the first."""
    name = entry[0] if isinstance(entry, list) else entry
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no name")
    return name
