"""Data sets of image files whose labels are in a table: a CSV file."""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attention_transfer.data.classes import abridged
from attention_transfer.data.columns import Columns
from attention_transfer.data.file_sets import SUFFIXES, SplitFiles, file_data_set
from attention_transfer.data.images import DataSet
from attention_transfer.data.label_values import code_labels
from attention_transfer.data.splitting import named_splits, split_of, with_test_split
from attention_transfer.errors import InputError
from attention_transfer.files import read_bytes

__all__ = ["table_data", "table_in"]

LARGEST_TABLE = 2**30
"""Bytes of the largest table: some ten million rows."""

_NAMES = ("labels.csv", "labels.tsv", "metadata.csv", "annotations.csv")
_SEPARATOR = ";"
"""Between several labels of an image."""


def table_in(folder: Path) -> Path | None:
    """Return the table of labels in a folder, under a usual name; None if there is none."""
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def table_data(
    file: Path,
    size: tuple[int, int],
    data_seed: int = 0,
    *,
    columns: Columns | None = None,
    label_offset: int | None = None,
) -> DataSet:
    """Load the images that a CSV file lists, with their labels.

    The first line names the columns, of which one holds the image's path, relative to the file's
    folder, one its label, and another perhaps its split: train, validation or test. Without a
    column of splits, a fifth of each class is held out for the test. Values are separated by
    commas, semicolons or tabs. A label such as ``cat;dog`` is several classes of one image.

    Args:
        file: the table.
        size: height and width in pixels to bring images to.
        data_seed: seed of the split.
        columns: the names of the columns; by default usual ones, such as filename and label.
        label_offset: see :func:`~attention_transfer.data.label_values.code_labels`.

    Raises:
        InputError: no such file, columns that are not there, images or labels that are missing, a
            split of unknown name, or as of folders.
    """
    rows, names = _read(file)
    columns = columns or Columns()
    image, label = (columns.require(str(file), role, names) for role in ("image", "label"))
    split = columns.find(str(file), "split", names)
    paths = [row[names.index(image)].strip() for row in rows]
    labels = [row[names.index(label)].strip() for row in rows]
    places = [row[names.index(split)].strip() for row in rows] if split else ["train"] * len(rows)
    members = _members(file, split, places)
    notices = _check_listed_once(file, paths, labels, members)
    found = _found(file, paths)
    values = _several(labels) or _as_numbers(labels)
    raw = {name: [values[index] for index in indices] for name, indices in members.items()}
    coded = code_labels(file.name, raw, offset=label_offset)
    splits = {
        name: SplitFiles(file.parent, [found[index] for index in members[name]], part)
        for name, part in coded.labels.items()
    }
    if len(coded.class_names) < 2:
        raise InputError(
            f"{file} has {len(coded.class_names)} class in its column {label!r}, expected at least "
            "two; name another column: --columns label=NAME"
        )
    notices += coded.notices
    notices.append(
        f"{file.name}: images are in the column {image!r}, labels in {label!r}"
        + (f", splits in {split!r}" if split else "")
    )
    data = file_data_set(
        file.parent, with_test_split(splits), coded.class_names, size, data_seed, notices
    )
    return replace(data, name=file.name)


def _read(file: Path) -> tuple[list[list[str]], list[str]]:
    """Return the rows of a table without the first, and the names of its columns."""
    if file.is_dir() or not file.exists():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{file} {kind}; expected a CSV file whose first line names its columns")
    try:
        text = read_bytes(file, LARGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",\t;", key=header.count)
    try:
        table = [
            row for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter) if row
        ]
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file ({error}); save it again as CSV") from None
    if len(table) < 2:
        raise InputError(f"{file} has {len(table)} lines, expected names of columns, and images")
    names, rows = [name.strip() for name in table[0]], table[1:]
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        raise InputError(
            f"the first line of {file} is an image ({abridged(names)}), expected the names of the "
            "columns; put a line such as filename,label before it"
        )
    ragged = [number for number, row in enumerate(rows, start=2) if len(row) != len(names)]
    if ragged:
        raise InputError(
            f"row {ragged[0]} of {file} has {len(rows[ragged[0] - 2])} values, expected "
            f"{len(names)} ({abridged(names)}); put values with a {delimiter!r} in quotes"
        )
    return rows, names


def _members(file: Path, column: str | None, places: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each split.

    Raises:
        InputError: a split of unknown name, or none to train on.
    """
    by_name: dict[str, list[int]] = {}
    for index, place in enumerate(places):
        by_name.setdefault(place, []).append(index)
    unknown = [name or "nothing" for name in by_name if split_of(name) is None]
    if unknown:
        rows = sum(len(rows) for name, rows in by_name.items() if split_of(name) is None)
        raise InputError(
            f"{file} has {abridged(unknown)} in its column {column!r} of splits, in {rows} rows; "
            "expected train, validation or test in each (another column: --columns split=NAME)"
        )
    named = named_splits(str(file), by_name)
    if "train" not in named:
        raise InputError(f"{file} has the splits {', '.join(by_name)} and no train; add one")
    return {split: by_name[name] for split, name in named.items()}


def _check_listed_once(
    file: Path, paths: list[str], labels: Sequence[str], members: dict[str, list[int]]
) -> list[str]:
    """Leave out rows that say the same twice, and return the notice of them.

    Raises:
        InputError: an image is listed with several labels, or in several splits.
    """
    listed: dict[str, tuple[str, str]] = {}
    twice: list[str] = []
    for split, indices in members.items():
        members[split] = []
        for index in indices:
            path, row = paths[index], (split, labels[index])
            if path not in listed:
                listed[path] = row
                members[split].append(index)
            elif listed[path] == row:
                twice.append(path)
            else:
                other_split, other = listed[path]
                raise InputError(
                    f"{file} lists {path} as {other!r} in {other_split} and as {row[1]!r} in "
                    f"{split}; list an image once, with several labels as 'cat;dog'"
                )
    return [f"{file.name} lists {len(twice)} images twice ({abridged(twice)})"] if twice else []


def _several(labels: Sequence[str]) -> list[tuple[str, ...]] | None:
    """Return the labels of each image; None if no image has several."""
    if not any(_SEPARATOR in value for value in labels):
        return None
    parts = ([part.strip() for part in value.split(_SEPARATOR)] for value in labels)
    return [tuple(filter(None, each)) for each in parts]


def _as_numbers(labels: Sequence[str]) -> list[int] | list[str]:
    """Return labels as numbers if all are whole numbers, written as such; empty ones are -1."""
    values = [label or "-1" for label in labels]
    if all(value.removeprefix("-").isdecimal() and str(int(value)) == value for value in values):
        return [int(value) for value in values]
    return list(labels)


def _found(file: Path, paths: Sequence[str]) -> list[str]:
    """Return the paths of existing files: as listed, or with a suffix that the table leaves out.

    Raises:
        InputError: some are not there.
    """
    found = [_existing(file.parent, path) for path in paths]
    missing = [path for path, place in zip(paths, found, strict=True) if place is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images of {file} are not in {file.parent}: "
            f"{abridged(missing, 3)}; paths are relative to the file's folder"
        )
    return [path for path in found if path is not None]


def _existing(folder: Path, path: str) -> str | None:
    """Return the path of a file under a folder, in the form in which it is there."""
    if not path:
        return None
    for form in dict.fromkeys(
        (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    ):
        for slashed in dict.fromkeys((form, form.replace("\\", "/"))):
            if (folder / slashed).is_file():
                return slashed
            if Path(slashed).suffix.lower() not in SUFFIXES:
                for suffix in (".jpg", ".jpeg", ".png", ".JPEG", ".JPG", ".PNG"):
                    if (folder / f"{slashed}{suffix}").is_file():
                        return f"{slashed}{suffix}"
    return None
