"""A folder of images, a subfolder for each class."""

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
from attention_transfer.errors import InputError

__all__ = ["SUFFIXES", "files_under", "folder_data"]

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
    )
)
"""Of files that are taken for images."""


@dataclass
class _Found:
    """The files of one split."""

    folder: Path
    classes: list[str]
    files: list[tuple[str, int]] = field(default_factory=list)
    """Path under the folder, and class."""
    strays: list[str] = field(default_factory=list)


def folder_data(folder: Path, size: tuple[int, int], *, data_seed: int = 0) -> DataSet:
    """The images under a folder.

    Either a subfolder for each class, of which a fifth of the images is held out for the test, the
    same share of each class; or ``train/`` with those subfolders, and ``val/``, ``test/`` or both
    beside it. With one of the two, that is the test split, which is read once at the end. The
    layouts of CUB-200-2011 and MIT Indoor Scenes, whose splits are in lists, are recognised.

    Every image is decoded once before training. Broken ones are left out and named, up to 1 % of
    the set, and always up to 5.

    Args:
        folder: the folder.
        size: height and width to bring the images to.
        data_seed: of the split.

    Returns:
        The sets; validation is empty unless there is a folder for it and for the test.

    Raises:
        InputError: no such folder, no classes, classes that differ between splits, too few images
            of a class, or too many that are broken.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; expected one with a subfolder a class")
    found = _splits(folder)
    classes = found["train"].classes
    notices = [notice for split in found.values() for notice in _stray_notices(split)]
    notices += _without_broken(found)
    sets = {name: _images(split, size) for name, split in found.items()}
    for name, images in sets.items():
        notices += _check_classes(images, classes, name, folder)
    if "test" not in sets:
        sets["train"], sets["test"] = hold_out_test(sets["train"], classes, data_seed)
    none = np.zeros(0, dtype=np.int64)
    return DataSet(
        name=folder.name or str(folder.resolve()),
        train=sets["train"],
        validation=sets.get("validation", sets["train"].subset(none)),
        test=sets["test"],
        class_names=tuple(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notices=tuple(notices),
    )


def _splits(folder: Path) -> dict[str, _Found]:
    """The files of each split that the folder has."""
    listed = listed_splits(folder)
    if listed is not None:
        return {
            split: _Found(listed.folder, listed.classes, files)
            for split, files in listed.files.items()
        }
    there = {
        entry.name.lower(): entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and _class_names(entry)
    }
    named = by_split(there)
    if "train" not in named:
        if named:
            raise InputError(
                f"{folder} has the splits {', '.join(place.name for place in named.values())} and "
                "no train; add one, or give a folder whose subfolders are the classes"
            )
        return {"train": _listed(folder, _class_names(folder))}
    classes = _class_names(named["train"])
    for split, place in named.items():
        unknown = sorted(set(_class_names(place)) - set(classes))
        if unknown:
            raise InputError(
                f"{place} has {len(unknown)} classes that {named['train']} has not: "
                f"{', '.join(unknown[:5])}; expected the same subfolders in every split ({split})"
            )
    return {split: _listed(place, classes) for split, place in named.items()}


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _seen(entry.name))


def _listed(folder: Path, classes: list[str]) -> _Found:
    """Every image file of every class, in the order of their names."""
    found = _Found(folder, classes)
    found.strays += [entry.name for entry in sorted(folder.iterdir()) if _stray(entry)]
    for label, name in enumerate(classes):
        for path in files_under(folder / name):
            relative = path.relative_to(folder).as_posix()
            if path.suffix.lower() in SUFFIXES:
                found.files.append((relative, label))
            else:
                found.strays.append(relative)
    return found


def files_under(folder: Path) -> Iterator[Path]:
    """Files at any depth, links followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_seen, folders))
        yield from (Path(place) / name for name in sorted(files) if _seen(name))


def _seen(name: str) -> bool:
    """Whether a name is not one that systems leave behind."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in (
        "thumbs.db",
        "desktop.ini",
    )


def _stray(entry: Path) -> bool:
    return entry.is_file() and _seen(entry.name)


def _stray_notices(split: _Found) -> Iterator[str]:
    if split.strays:
        shown = ", ".join(split.strays[:5])
        yield (
            f"left out of {split.folder}, no images of a class: {len(split.strays)} files ({shown}"
            f"{', ...' if len(split.strays) > 5 else ''})"
        )


def _without_broken(found: dict[str, _Found]) -> list[str]:
    """Takes the files that are no whole images out of the splits, and tells of them."""
    total = sum(len(split.files) for split in found.values())
    lines = []
    for split in found.values():
        paths = [split.folder / path for path, _ in split.files]
        reasons = faults([partial(Path, path) for path in paths], total)
        lines += [
            f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True) if reason
        ]
        split.files = [
            file for file, reason in zip(split.files, reasons, strict=True) if reason is None
        ]
    return skipped(lines, total)


def _images(split: _Found, size: tuple[int, int]) -> FileImages:
    return FileImages(
        split.folder,
        tuple(path for path, _ in split.files),
        torch.tensor([label for _, label in split.files], dtype=torch.int64),
        size,
    )


def _check_classes(
    images: FileImages, classes: Sequence[str], split: str, folder: Path
) -> Iterator[str]:
    """Tells of classes without images in a split.

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
