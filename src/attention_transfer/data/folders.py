"""Data sets in folders of images, with a subfolder for each class."""

from dataclasses import replace
from pathlib import Path

from attention_transfer.data.class_folders import has_classes
from attention_transfer.data.file_sets import SUFFIXES, file_data_set
from attention_transfer.data.images import DataSet
from attention_transfer.data.layouts import folder_splits
from attention_transfer.data.left_behind import files_under
from attention_transfer.data.listed_splits import imagenet_folder
from attention_transfer.data.tables import table_data, table_in
from attention_transfer.errors import InputError

__all__ = ["SUFFIXES", "check_imagenet_layout", "files_under", "folder_data"]


def folder_data(folder: Path, size: tuple[int, int], data_seed: int = 0) -> DataSet:
    """Load the images under a folder.

    The folder holds either a subfolder for each class, and a fifth of each class is held out for
    the test; or ``train/`` with those subfolders, and ``val/``, ``test/`` or both beside it (also
    under names such as ``valid``, ``dev``, ``eval``, ``holdout``, ``test1``). If there is only one
    of the two, it is the test split. The splits may also be inside each class: ``cat/train/``. The
    layouts of ImageNet (also of Kaggle's archive), Tiny-ImageNet, CUB-200-2011 and MIT Indoor
    Scenes are recognised. A folder without subfolders for classes and with ``labels.csv`` is read
    by that table.

    Every image is decoded once before training. Corrupt ones are skipped and named, up to 1 % of
    the set, and always up to 5. A notice names whatever else is left out.

    Args:
        folder: the folder.
        size: height and width in pixels to bring images to.
        data_seed: seed of the split.

    Returns:
        The data set; validation is empty unless there are folders for it and for the test.

    Raises:
        InputError: no such folder, no classes, subfolders that are no classes, such as masks beside
            images, classes that differ between splits, a split that cannot be used, an image that
            is linked to another class or split, too few images of a class, or too many corrupt
            ones.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; expected one with a subfolder for each class"
        )
    table = table_in(folder)
    if table is not None and not has_classes(folder):
        data = table_data(table, size, data_seed)
        notice = f"the labels of {folder} are those in {table}"
        return replace(data, notices=(notice, *data.notices))
    found = folder_splits(folder)
    if table is not None:
        found.notices.append(
            f"{table} is not read, as there are subfolders for classes; --data csv:{table} reads it"
        )
    return file_data_set(folder, found.splits, found.classes, size, data_seed, found.notices)


def check_imagenet_layout(folder: Path) -> None:
    """Raise an InputError unless a folder has ImageNet's layout: ``train/`` and ``val/``."""
    root = imagenet_folder(folder)
    if not all((root / split).is_dir() for split in ("train", "val")):
        raise InputError(
            f"{folder} is not laid out as ImageNet; expected {folder}/train and {folder}/val, "
            "each with a subfolder for each class, or the root of Kaggle's archive, with ILSVRC"
        )
