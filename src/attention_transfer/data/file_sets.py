"""Data sets of image files: each split is a list of paths with their labels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data.classes import abridged
from attention_transfer.data.corrupt_images import faults, skipped
from attention_transfer.data.decoding import CorruptImageError, file_channels
from attention_transfer.data.files import FileImages
from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD, DataSet
from attention_transfer.data.label_values import is_multi_label
from attention_transfer.data.splitting import hold_out_test, with_test_split
from attention_transfer.data.unread_files import naming_unread, unread_images, what_to_do
from attention_transfer.data.views import CropResize
from attention_transfer.errors import InputError

__all__ = ["SUFFIXES", "SplitFiles", "file_data_set"]

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
    )
)
"""The suffixes of image files."""


@dataclass
class SplitFiles:
    """The image files of one split."""

    folder: Path
    paths: list[str]
    """Relative to the folder, or absolute."""
    labels: Tensor
    """(N,) class indices; or (N, classes), 1 where an image is of a class."""
    unread: dict[str, list[str]] = field(default_factory=dict)
    """By class, files that are not images."""


def file_data_set(
    folder: Path,
    splits: Mapping[str, SplitFiles],
    classes: Sequence[str],
    size: tuple[int, int],
    data_seed: int,
    notices: Sequence[str],
    *,
    gaps: bool = False,
) -> DataSet:
    """Make a data set of image files; without a test split, validation or a fifth of each class
    is the test split.

    Every image is decoded once. Corrupt ones are skipped and named, up to 1 % of the set, and
    always up to 5.

    Args:
        folder: of the data set.
        splits: ``train``, and perhaps ``validation`` and ``test``.
        classes: their names.
        size: height and width in pixels to bring images to.
        data_seed: seed of the split.
        notices: on how the files were found.
        gaps: whether classes may lack training images, as of labels that are class indices.

    Raises:
        InputError: fewer than two classes, a class without training images, too few of one to
            hold any out, or too many corrupt images.
    """
    if len(classes) < 2:
        raise InputError(
            f"{folder} has {len(classes)} subfolders, expected one for each class, at least two"
        )
    splits = with_test_split(dict(splits))
    unread = [
        path for split in splits.values() for paths in split.unread.values() for path in paths
    ]
    remark = unread_images(unread)
    notices = [*notices, *([remark] if remark else [])]
    with naming_unread(notices):
        total = sum(len(split.paths) for split in splits.values())
        channels = _channels(splits["train"])
        corrupt = _remove_corrupt(splits, total, channels)
        notices = [*notices, *skipped(corrupt, total)]
        for name, split in splits.items():
            notices += _check_classes(split, classes, name, gaps)
        images = {
            name: FileImages(
                split.labels, CropResize(size, channels=channels), split.folder, tuple(split.paths)
            )
            for name, split in splits.items()
        }
        if "test" not in images:
            images["train"], images["test"] = hold_out_test(images["train"], classes, data_seed)
    nothing = np.zeros(0, dtype=np.int64)
    return DataSet(
        name=folder.name or str(folder.resolve()),
        train=images["train"],
        validation=images.get("validation", images["train"].subset(nothing)),
        test=images["test"],
        class_names=tuple(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notices=tuple(notices),
        corrupt=tuple(corrupt),
    )


def _channels(split: SplitFiles) -> int:
    """Return the channels that images are brought to: those of the first that can be opened."""
    for path in split.paths:
        with suppress(CorruptImageError):
            return file_channels(split.folder / path)
    return 3


def _remove_corrupt(
    splits: Mapping[str, SplitFiles], total: int, channels: int
) -> list[tuple[str, str]]:
    """Remove corrupt images from the splits, and return the path of each and why."""
    corrupt = []
    for split in splits.values():
        paths = [split.folder / path for path in split.paths]
        reasons = faults([partial(Path, path) for path in paths], total, channels)
        corrupt += [
            (str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason
        ]
        whole = [index for index, reason in enumerate(reasons) if reason is None]
        split.paths = [split.paths[index] for index in whole]
        split.labels = split.labels[torch.tensor(whole, dtype=torch.int64)]
    return corrupt


def _check_classes(
    split: SplitFiles, classes: Sequence[str], name: str, gaps: bool
) -> Iterator[str]:
    """Yield a notice of classes without images in another split than the training images.

    Raises:
        InputError: there are none to train on, or none of any class.
    """
    if is_multi_label(split.labels):
        counts = Counter(dict(enumerate(split.labels.sum(0).int().tolist())))
    else:
        counts = Counter(split.labels.tolist())
    empty = [name for label, name in enumerate(classes) if not counts[label]]
    if empty and ((name == "train" and not gaps) or len(empty) == len(classes)):
        raise InputError(
            f"{split.folder} has no images of {len(empty)} of {len(classes)} classes: "
            f"{', '.join(empty[:5])}; {_remedy(split, empty)}"
        )
    if empty and name != "train":
        yield f"{split.folder} has no images of {abridged(empty)} in its {name} split"


def _remedy(split: SplitFiles, empty: Sequence[str]) -> str:
    """Return what to do about classes without images: by what their folders hold instead."""
    for name in empty:
        unread = what_to_do(split.unread.get(name, []))
        if unread is not None:
            return f"{name} holds {unread}"
    return "add some, or remove the subfolders"
