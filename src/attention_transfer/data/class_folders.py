"""Whether the subfolders of a folder are classes, or stand beside each other for another reason."""

import re
from collections.abc import Sequence
from pathlib import Path

from attention_transfer.data.classes import abridged
from attention_transfer.data.file_sets import SUFFIXES
from attention_transfer.data.left_behind import files_under, user_folders
from attention_transfer.data.splitting import split_of
from attention_transfer.errors import InputError

__all__ = ["check_are_classes", "has_classes", "is_image"]

_IMAGES = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "rgb", "original", "originals")
)
_COMPANIONS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annotation", "annotations", "annots", "gt"),
        *(
            "segmentation",
            "segmentations",
            "segmentationclass",
            "segmentationobject",
            "groundtruth",
        ),
        *(
            "truth",
            "bbox",
            "bboxes",
            "boxes",
            "depth",
            "depths",
            "target",
            "targets",
            "xml",
            "xmls",
        ),
    )
)
"""Words in the names of folders with one file for each image of another folder."""

_FOLDS = re.compile(r"(k?fold|cv|split|subset|shard|chunk|batch)\d+|\d+(st|nd|rd|th)?fold")
"""Names of parts of a data set, without what is no letter and no digit."""


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its suffix."""
    return path.suffix.lower() in SUFFIXES


def has_classes(folder: Path) -> bool:
    """Return whether a folder, or a split in it, has two subfolders with files or more."""
    entries = user_folders(folder)
    for subfolders in (entries, *map(user_folders, entries)):
        filled = [path for path in subfolders if next(files_under(path), None) is not None]
        if len(filled) > 1 and not (subfolders is entries and _are_splits(filled)):
            return True
    return False


def _are_splits(folders: Sequence[Path]) -> bool:
    return all(split_of(path.name) for path in folders)


def check_are_classes(folder: Path, entries: Sequence[Path]) -> list[str]:
    """Return a notice where the subfolders of a folder are perhaps no classes.

    Raises:
        InputError: they are a folder of images and one of their masks or annotations; the parts of
            a data set, such as folds, which hold the classes each; or one that holds the classes.
    """
    filled = [entry for entry in entries if next(files_under(entry), None) is not None]
    _check_companions(folder, filled)
    _check_wrapper(folder, filled)
    inner = [{path.name for path in user_folders(entry)} for entry in filled]
    same = sorted(set.intersection(*inner)) if inner else []
    if len(filled) < 2 or len(same) < 2:
        return []
    names = abridged([entry.name for entry in filled])
    if all(_FOLDS.fullmatch(re.sub(r"[\W_]", "", entry.name.lower())) for entry in filled):
        raise InputError(
            f"{folder} holds {names}, and each of them the same subfolders ({abridged(same)}): "
            f"parts of a data set and no classes; give one of them, as folder:{filled[0]}, or "
            "move their subfolders into train/ and test/, or give a table of all images with "
            "their labels and splits as csv:FILE"
        )
    are_splits = sum(split_of(name) is not None for name in same) > 1
    if all(each == set(same) for each in inner) and not are_splits:
        return [
            f"{names} in {folder} are read as the classes, and each holds the same subfolders "
            f"({abridged(same)}); if those are the classes, give folder:{filled[0]}, or csv:FILE"
        ]
    return []


def _check_companions(folder: Path, filled: Sequence[Path]) -> None:
    """Raise an InputError for folders of images beside folders of their masks or annotations."""
    roles = {entry: _role(entry.name) for entry in filled}
    images = [entry for entry in filled if roles[entry] == "images"]
    companions = [entry for entry in filled if roles[entry] == "companions"]
    if not images or not companions:
        return
    if any(_has_images(entry) for entry in filled if roles[entry] is None):
        return
    stems = {entry: _image_stems(entry) for entry in (*images, *companions)}
    of_images = set().union(*(stems[entry] for entry in images))
    for entry in companions:
        if 2 * len(stems[entry] & of_images) < len(stems[entry]):
            return
    alike = any(stems[entry] for entry in companions)
    seen = "images with the names of those" if alike else "no images, but what belongs to those"
    if has_classes(images[0]):
        advice = _unwrap(folder, images[0])
    else:
        advice = (
            f"sort the images into a subfolder for each class, or give a table of one label for "
            f"each image of {images[0]} as csv:FILE"
        )
    raise InputError(
        f"{folder} holds {abridged([entry.name for entry in companions])} beside "
        f"{abridged([entry.name for entry in images])}, with {seen}: they are no classes; {advice}"
    )


def _check_wrapper(folder: Path, filled: Sequence[Path]) -> None:
    """Raise an InputError if a single subfolder has images, and those in subfolders of its own."""
    with_images = [entry for entry in filled if _has_images(entry)]
    holders = with_images or filled
    if len(holders) != 1:
        return
    (inner,) = holders
    while len(subfolders := user_folders(inner)) == 1 and not split_of(subfolders[0].name):
        (inner,) = subfolders
    if subfolders:
        raise InputError(
            f"all images of {folder} are in {inner}, which has {len(subfolders)} subfolders "
            f"({abridged([path.name for path in subfolders])}); {_unwrap(folder, inner)}"
        )


def _unwrap(folder: Path, inner: Path) -> str:
    """Return what to do about a folder whose classes are in a folder further in."""
    if split_of(folder.name):
        return f"move the subfolders of {inner.name} straight into {folder}"
    return f"give folder:{inner}, if its subfolders are the classes"


def _role(name: str) -> str | None:
    """Return whether a folder holds images or their companions, by the words in its name.

    >>> [_role(name) for name in ("images_png", "Mask-2", "label images", "cat")]
    ['images', 'companions', 'companions', None]
    """
    words = set(re.split(r"[\W_\d]+", name.lower())) - {""}
    if words & _COMPANIONS:
        return "companions"
    return "images" if words & _IMAGES else None


def _has_images(folder: Path) -> bool:
    """Return whether a folder holds an image at any depth."""
    return any(map(is_image, files_under(folder)))


def _image_stems(folder: Path) -> set[str]:
    """Return the names of images without what tells them apart: ``img_1.png``, ``1_mask.png``."""
    words = "|".join(sorted(_IMAGES | _COMPANIONS))
    stems = (path.stem for path in files_under(folder) if is_image(path))
    return {re.sub(rf"^({words})[\W_]+|[\W_]+({words})$", "", stem.lower()) for stem in stems}
