"""Folders with lists of their splits or classes: CUB-200, MIT Scenes, ImageNet, Tiny-ImageNet."""

import csv
from pathlib import Path
from typing import NamedTuple

from attention_transfer.data.splitting import split_of
from attention_transfer.errors import InputError

__all__ = [
    "AnnotatedLabels",
    "ListedSplits",
    "annotated_labels",
    "imagenet_folder",
    "listed_splits",
]

_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_SOLUTION, _ANNOTATIONS = "LOC_val_solution.csv", "val_annotations.txt"
_LEVELS = 4
"""Folders above a validation split in which its solution is looked for: Kaggle's root is the
fourth.
"""


class ListedSplits(NamedTuple):
    """The classes, and by split the files under a folder with their class index."""

    folder: Path
    classes: list[str]
    files: dict[str, list[tuple[str, int]]]


class AnnotatedLabels(NamedTuple):
    """The classes of images in one folder, by their names without a suffix."""

    source: Path
    classes: dict[str, str]


def imagenet_folder(folder: Path) -> Path:
    """Return the folder of ImageNet's splits under the root of Kaggle's archive, or the folder."""
    for path in _KAGGLE:
        if (folder / path / "train").is_dir():
            return folder / path
    return folder


def annotated_labels(folder: Path) -> AnnotatedLabels | None:
    """Return the classes of a validation split whose images lie in one folder, if a file has them.

    - Tiny-ImageNet: ``val_annotations.txt`` beside ``images/``.
    - ImageNet of Kaggle: ``LOC_val_solution.csv``, in a folder above.

    Raises:
        InputError: the file has no classes.
    """
    if (folder / _ANNOTATIONS).is_file():
        rows = [line.split() for line in _lines(folder / _ANNOTATIONS)]
        return _annotated(folder / _ANNOTATIONS, rows)
    if split_of(folder.name) != "validation" or any(entry.is_dir() for entry in folder.iterdir()):
        return None
    folder = folder.resolve()
    for place in (folder, *folder.parents[: _LEVELS + 1]):
        if (place / _SOLUTION).is_file():
            rows = [[row[0], *row[1].split()] for row in _rows(place / _SOLUTION) if len(row) > 1]
            return _annotated(place / _SOLUTION, rows[1:])
    return None


def _annotated(source: Path, rows: list[list[str]]) -> AnnotatedLabels:
    classes = {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
    if not classes:
        raise InputError(f"{source} lists no images with their classes; unpack it again")
    return AnnotatedLabels(source, classes)


def _rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        return list(csv.reader(lines))


def listed_splits(folder: Path) -> ListedSplits | None:
    """Return the splits that files in a folder list; None if there are no such files.

    - CUB-200-2011: ``images.txt``, ``train_test_split.txt``, images under ``images/``.
    - MIT Indoor Scenes: ``TrainImages.txt``, ``TestImages.txt``, images under ``Images/``.

    Raises:
        InputError: the lists are damaged, or name missing files.
    """
    if (folder / "train_test_split.txt").is_file() and (folder / "images.txt").is_file():
        paths = _numbered(folder / "images.txt")
        trained = _numbered(folder / "train_test_split.txt")
        if paths.keys() != trained.keys():
            raise InputError(
                f"images.txt and train_test_split.txt in {folder} list different images"
            )
        by_split = {
            split: [path for number, path in paths.items() if trained[number] == mark]
            for split, mark in (("train", "1"), ("test", "0"))
        }
        return _with_classes(folder / "images", by_split)
    if (folder / "TrainImages.txt").is_file() and (folder / "TestImages.txt").is_file():
        by_split = {
            split: _lines(folder / f"{name}Images.txt")
            for split, name in (("train", "Train"), ("test", "Test"))
        }
        return _with_classes(folder / "Images", by_split)
    return None


def _with_classes(folder: Path, by_split: dict[str, list[str]]) -> ListedSplits:
    """Return the splits with each file's class, which is its folder."""
    listed = [path for paths in by_split.values() for path in paths]
    missing = [path for path in listed if not (folder / path).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} listed images are not in {folder}: "
            f"{', '.join(missing[:3])}; unpack the archive again"
        )
    classes = sorted({Path(path).parent.as_posix() for path in listed})
    labels = {name: label for label, name in enumerate(classes)}
    files = {
        split: [(path, labels[Path(path).parent.as_posix()]) for path in paths]
        for split, paths in by_split.items()
    }
    return ListedSplits(folder, classes, files)


def _numbered(file: Path) -> dict[str, str]:
    """Return the values of a list's lines by their numbers."""
    pairs = [line.partition(" ") for line in _lines(file)]
    return {number: value.strip() for number, _, value in pairs}


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
