"""The labels in a table: in one column, or in a column for each class."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from attention_transfer.data.classes import abridged
from attention_transfer.data.splitting import split_of
from attention_transfer.data.table_text import Table
from attention_transfer.errors import InputError

__all__ = ["TableLabels", "class_columns", "column_labels", "split_advice", "split_values"]

_SEPARATOR = ";"
"""Between several labels of an image."""

_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?")
"""Text of a whole number, as pandas writes it also: 3, -1, 3.0."""

_TRUE, _FALSE = ("true", "t", "yes", "1", "1.0"), ("false", "f", "no", "0", "0.0")


class TableLabels(NamedTuple):
    """The labels of a table's rows."""

    values: Sequence[Any]
    """As :func:`~attention_transfer.data.label_values.code_labels` takes them."""
    texts: Sequence[str]
    """The same as text, for messages."""
    columns: tuple[str, ...]
    """The columns that they are in."""
    class_names: tuple[str, ...] | None = None
    """By class index; None: the labels say."""


def column_labels(table: Table, column: str) -> TableLabels:
    """Return the labels in a column: names, whole numbers, or several classes of each image."""
    labels = table.column(column)
    values: Sequence[Any] = labels
    if any(_SEPARATOR in label for label in labels):
        parts = ([part.strip() for part in label.split(_SEPARATOR)] for label in labels)
        values = [tuple(filter(None, each)) for each in parts]
    elif all(_WHOLE.fullmatch(label) for label in labels if label):
        values = [int(label.partition(".")[0]) if label else None for label in labels]
    texts = [";".join(value) if isinstance(value, tuple) else str(value) for value in values]
    return TableLabels(values, texts, (column,))


def class_columns(what: str, table: Table, others: Sequence[str | None]) -> TableLabels | None:
    """Return the labels of a table with a column of 0 and 1 for each class; None: there are none.

    Args:
        what: the table, for messages.
        table: the table, which has no column of labels.
        others: the columns of images and splits.

    Raises:
        InputError: it is unclear which columns are classes.
    """
    rest = [name for name in table.names if name and name not in others]
    values = {name: table.column(name) for name in rest if split_advice(table, name) is None}
    marks = {
        name: [value in ("1", "1.0") for value in column]
        for name, column in values.items()
        if set(column) <= {"0", "1", "0.0", "1.0"}
    }
    if len(marks) < 2:
        return None
    classes = tuple(marks)
    several = [
        tuple(index for index, mark in enumerate(row) if mark)
        for row in zip(*marks.values(), strict=True)
    ]
    texts = [";".join(classes[index] for index in each) for each in several]
    if all(len(each) <= 1 for each in several):
        single = [each[0] if each else None for each in several]
        return TableLabels(single, texts, classes, classes)
    unclear = [name for name in rest if name not in marks]
    if unclear:
        raise InputError(
            f"{what} has no column of labels, several columns of 0 and 1 ({abridged(classes)}), of "
            f"which rows have more than one 1, and others ({abridged(unclear)}); leave in the "
            "columns of the classes alone, or put labels such as cat;dog into a column label"
        )
    return TableLabels(several, texts, classes, classes)


def split_values(column: str, values: Sequence[str]) -> list[str]:
    """Return the split of each row; a column such as ``is_valid`` may have true and false.

    >>> split_values("is_valid", ["True", "False"])
    ['validation', 'train']
    """
    split = _flag(column)
    lower = [value.lower() for value in values]
    if split is None or not set(lower) <= {*_TRUE, *_FALSE}:
        return list(values)
    other = "test" if split == "train" else "train"
    return [split if value in _TRUE else other for value in lower]


def split_advice(table: Table, column: str) -> str | None:
    """Return how to use a column that looks like one of splits; None: it does not."""
    values = table.column(column)
    if all(split_of(value) for value in split_values(column, values)):
        return f"{column} looks like the splits: --columns split={column} uses it"
    if re.search("fold", column.lower()) or _flag(column):
        return (
            f"{column} may tell the splits: to use it, write train, validation or test for each "
            "image into a column split"
        )
    return None


def _flag(column: str) -> str | None:
    """Return the split that a column such as ``is_valid`` marks."""
    return split_of(re.sub(r"^is[\W_]*", "", column.lower()))
