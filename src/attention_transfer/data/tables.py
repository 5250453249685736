"""Data sets of image files whose labels are in a table: a CSV file."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attention_transfer.data.classes import abridged
from attention_transfer.data.columns import Columns
from attention_transfer.data.file_sets import SUFFIXES, SplitFiles, file_data_set
from attention_transfer.data.images import DataSet
from attention_transfer.data.label_values import code_labels
from attention_transfer.data.repeated_files import LabelledFile, once_each
from attention_transfer.data.splitting import named_splits, split_of, with_test_split
from attention_transfer.data.table_labels import (
    TableLabels,
    class_columns,
    column_labels,
    split_advice,
    split_values,
)
from attention_transfer.data.table_text import Table, read_table
from attention_transfer.errors import InputError

__all__ = ["table_data", "table_in"]

_NAMES = ("labels.csv", "labels.tsv", "metadata.csv", "annotations.csv")


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
    column of splits, a fifth of each class is held out for the test. A label such as ``cat;dog`` is
    several classes of one image. In place of labels there may be a column for each class, with 0
    and 1. Notices name the classes, and the columns that are not read.

    Args:
        file: the table.
        size: height and width in pixels to bring images to.
        data_seed: seed of the split.
        columns: the names of the columns; by default usual ones, such as filename and label.
        label_offset: see :func:`~attention_transfer.data.label_values.code_labels`.

    Raises:
        InputError: no such file, columns that are not there or twice, images or labels that are
            missing, an image with several labels or splits, a split of unknown name, or as of
            folders.
    """
    table = read_table(file)
    columns = columns or Columns()
    image = columns.require(str(file), "image", table.names)
    split = columns.find(str(file), "split", table.names)
    labels = _labels(file, table, columns, (image, split), label_offset)
    places = split_values(split, table.column(split)) if split else ["train"] * len(table.rows)
    files = _existing_files(file, table.column(image))
    members, notices = _listed_once(
        file, table.column(image), files, labels.texts, _members(file, split, places)
    )
    raw = {name: [labels.values[index] for index in indices] for name, indices in members.items()}
    coded = code_labels(file.name, raw, labels.class_names, label_offset)
    splits = {
        name: SplitFiles(file.parent, [files[index] for index in members[name]], part)
        for name, part in coded.labels.items()
    }
    notices = [*table.notices, *notices, *coded.notices]
    notices += _columns_read(file.name, table, image, labels.columns, split, coded.class_names)
    if len(coded.class_names) < 2:
        raise InputError(
            f"{file} has {len(coded.class_names)} class in its column {labels.columns[0]!r}, "
            "expected at least two; name another column: --columns label=NAME"
        )
    data = file_data_set(
        file.parent,
        with_test_split(splits),
        coded.class_names,
        size,
        data_seed,
        notices,
        gaps=label_offset is not None,
    )
    return replace(data, name=file.name)


def _labels(
    file: Path,
    table: Table,
    columns: Columns,
    others: tuple[str, str | None],
    label_offset: int | None,
) -> TableLabels:
    """Return the labels of a table's rows.

    Raises:
        InputError: there is no column of labels, and no columns of classes; or those and an offset.
    """
    if columns.find(str(file), "label", table.names) is None:
        labels = class_columns(str(file), table, others)
        if labels is not None and label_offset is not None:
            raise InputError(
                f"{file} has a column for each class ({abridged(labels.columns)}) and no labels "
                "that are numbers; leave out the label offset"
            )
        if labels is not None:
            return labels
    return column_labels(table, columns.require(str(file), "label", table.names))


def _columns_read(
    name: str,
    table: Table,
    image: str,
    labels: Sequence[str],
    split: str | None,
    class_names: Sequence[str],
) -> Iterator[str]:
    """Yield which columns hold what, the classes, and the columns that are not read."""
    where = f"labels in {labels[0]!r}"
    if len(labels) > 1:
        where = f"labels in the columns {abridged(labels)}, with 0 and 1"
    yield (
        f"{name}: images are in the column {image!r}, {where}"
        f"{f', splits in {split!r}' if split else ''}; {len(class_names)} classes: "
        f"{abridged(class_names)}"
    )
    unread = [column for column in table.names if column not in (image, *labels, split, "")]
    if unread:
        advice = [split_advice(table, column) for column in unread if split is None]
        yield "; ".join(
            [f"{name}: columns that are not read: {', '.join(unread)}", *filter(None, advice)]
        )


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


def _listed_once(
    file: Path,
    paths: Sequence[str],
    files: Sequence[str],
    labels: Sequence[str],
    members: Mapping[str, Sequence[int]],
) -> tuple[dict[str, list[int]], list[str]]:
    """Leave out rows that say the same twice, and return the rows of each split and the notice.

    Raises:
        InputError: an image is listed with several labels, or in several splits.
    """
    listed = {
        split: [
            LabelledFile(file.parent / files[index], labels[index], paths[index])
            for index in indices
        ]
        for split, indices in members.items()
    }
    kept, notices = once_each(
        str(file), listed, "list an image once, with several labels as 'cat;dog'"
    )
    rows = {split: [members[split][index] for index in kept[split]] for split in members}
    return rows, notices


def _existing_files(file: Path, paths: Sequence[str]) -> list[str]:
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
            if os.path.isfile(folder / slashed):
                return slashed
            if Path(slashed).suffix.lower() not in SUFFIXES:
                for suffix in (".jpg", ".jpeg", ".png", ".JPEG", ".JPG", ".PNG"):
                    if os.path.isfile(folder / f"{slashed}{suffix}"):
                        return f"{slashed}{suffix}"
    return None
