"""Folders with lists of their splits: CUB-200 and MIT Scenes, the paper's fine-tuning sets."""

from pathlib import Path
from typing import NamedTuple

from attention_transfer.errors import InputError

__all__ = ["ListedSplits", "listed_splits"]


class ListedSplits(NamedTuple):
    """The classes, and by split the files under a folder with their class index."""

    folder: Path
    classes: list[str]
    files: dict[str, list[tuple[str, int]]]


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
