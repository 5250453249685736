"""Data sets in folders of images, with a subfolder for each class."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from attention_transfer.data.corrupt_images import faults, skipped
from attention_transfer.data.files import FileImages
from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD, DataSet
from attention_transfer.data.listed_splits import listed_splits
from attention_transfer.data.splitting import by_split, hold_out_test
from attention_transfer.data.views import CropResize
from attention_transfer.errors import InputError

__all__ = ["SUFFIXES", "check_imagenet_layout", "files_under", "folder_data"]

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
    )
)
"""The suffixes of image files."""


@dataclass
class _SplitFiles:
    """The files of one split."""

    folder: Path
    classes: list[str]
    files: list[tuple[str, int]] = field(default_factory=list)
    """Path under the folder, and class."""
    strays: list[str] = field(default_factory=list)


def folder_data(folder: Path, size: tuple[int, int], data_seed: int = 0) -> DataSet:
    """Load the images under a folder.

    The folder holds either a subfolder for each class, and a fifth of each class is held out for
    the test; or ``train/`` with those subfolders, and ``val/``, ``test/`` or both beside it. If
    there is only one of the two, it is the test split. The layouts of CUB-200-2011 and MIT Indoor
    Scenes, whose splits are in lists, are recognised.

    Every image is decoded once before training. Corrupt ones are skipped and named, up to 1 % of
    the set, and always up to 5.

    Args:
        folder: the folder.
        size: height and width in pixels to bring images to.
        data_seed: seed of the split.

    Returns:
        The data set; validation is empty unless there are folders for it and for the test.

    Raises:
        InputError: no such folder, no classes, classes that differ between splits, too few images
            of a class, or too many corrupt ones.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; expected one with a subfolder for each class"
        )
    splits = _splits(folder)
    classes = splits["train"].classes
    notices = [notice for split in splits.values() for notice in _stray_notices(split)]
    total = sum(len(split.files) for split in splits.values())
    corrupt = _remove_corrupt(splits, total)
    notices += skipped(corrupt, total)
    images = {name: _images(split, size) for name, split in splits.items()}
    for name, part in images.items():
        notices += _check_classes(part, classes, name, folder)
    if "test" not in images:
        images["train"], images["test"] = hold_out_test(images["train"], classes, data_seed)
    return DataSet(
        name=folder.name or str(folder.resolve()),
        train=images["train"],
        validation=images.get("validation", images["train"].subset(np.zeros(0, dtype=np.int64))),
        test=images["test"],
        class_names=tuple(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notices=tuple(notices),
        corrupt=tuple(corrupt),
    )


def check_imagenet_layout(folder: Path) -> None:
    """Raise an InputError unless a folder has ImageNet's layout: ``train/`` and ``val/``."""
    if not all((folder / split).is_dir() for split in ("train", "val")):
        raise InputError(
            f"{folder} is not laid out as ImageNet; expected {folder}/train and {folder}/val, "
            "each with a subfolder for each class"
        )


def _splits(folder: Path) -> dict[str, _SplitFiles]:
    """Return the files of each split in a folder."""
    listed = listed_splits(folder)
    if listed is not None:
        return {
            split: _SplitFiles(listed.folder, listed.classes, files)
            for split, files in listed.files.items()
        }
    folders = {
        entry.name.lower(): entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and _class_names(entry)
    }
    named = by_split(folders)
    if "train" not in named:
        if named:
            raise InputError(
                f"{folder} has the splits {', '.join(path.name for path in named.values())} and "
                "no train; add one, or give a folder whose subfolders are the classes"
            )
        return {"train": _files_by_class(folder, _class_names(folder))}
    classes = _class_names(named["train"])
    for split, path in named.items():
        unknown = sorted(set(_class_names(path)) - set(classes))
        if unknown:
            raise InputError(
                f"{path} has {len(unknown)} classes that {named['train']} has not: "
                f"{', '.join(unknown[:5])}; expected the same subfolders in every split ({split})"
            )
    return {split: _files_by_class(path, classes) for split, path in named.items()}


def _class_names(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and _is_users(entry.name)
    )


def _files_by_class(folder: Path, classes: list[str]) -> _SplitFiles:
    """Return every image file of every class, in the order of their names."""
    split = _SplitFiles(folder, classes)
    split.strays += [entry.name for entry in sorted(folder.iterdir()) if _stray(entry)]
    for label, name in enumerate(classes):
        for path in files_under(folder / name):
            relative = path.relative_to(folder).as_posix()
            if path.suffix.lower() in SUFFIXES:
                split.files.append((relative, label))
            else:
                split.strays.append(relative)
    return split


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth; links are followed, and each folder is visited once."""
    visited: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(filter(_is_users, folders))
        yield from (Path(path) / name for name in sorted(files) if _is_users(name))


def _is_users(name: str) -> bool:
    """Return False for names of hidden files and those that operating systems leave behind."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in (
        "thumbs.db",
        "desktop.ini",
    )


def _stray(entry: Path) -> bool:
    return entry.is_file() and _is_users(entry.name)


def _stray_notices(split: _SplitFiles) -> Iterator[str]:
    if split.strays:
        shown = ", ".join([*split.strays[:5], *["..."][: len(split.strays) - 5]])
        yield (
            f"skipped {len(split.strays)} files in {split.folder} that are not images of a class "
            f"({shown})"
        )


def _remove_corrupt(splits: dict[str, _SplitFiles], total: int) -> list[tuple[str, str]]:
    """Remove corrupt images from the splits, and return the path of each and why."""
    corrupt = []
    for split in splits.values():
        paths = [split.folder / path for path, _ in split.files]
        reasons = faults([partial(Path, path) for path in paths], total)
        corrupt += [
            (str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason
        ]
        split.files = [
            file for file, reason in zip(split.files, reasons, strict=True) if reason is None
        ]
    return corrupt


def _images(split: _SplitFiles, size: tuple[int, int]) -> FileImages:
    return FileImages(
        torch.tensor([label for _, label in split.files], dtype=torch.int64),
        CropResize(size),
        split.folder,
        tuple(path for path, _ in split.files),
    )


def _check_classes(
    images: FileImages, classes: Sequence[str], split: str, folder: Path
) -> Iterator[str]:
    """Yield a notice of classes without images in a split.

    Raises:
        InputError: there are none to train on, or fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(
            f"{folder} has {len(classes)} subfolders, expected one for each class, at least two"
        )
    counts = Counter(images.labels.tolist())
    empty = [name for label, name in enumerate(classes) if not counts[label]]
    if empty and (split == "train" or len(empty) == len(classes)):
        raise InputError(
            f"{images.root} has no images of {len(empty)} of {len(classes)} classes: "
            f"{', '.join(empty[:5])}; add some, or remove the subfolders"
        )
    if empty:
        yield f"{images.root} has no images of {', '.join(empty[:5])}"
