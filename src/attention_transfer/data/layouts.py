"""The splits and classes of a folder of images, in any layout that people have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attention_transfer.data.class_folders import check_are_classes, is_image
from attention_transfer.data.classes import abridged, normal_form
from attention_transfer.data.file_sets import SplitFiles
from attention_transfer.data.left_behind import files_under, is_users, user_folders
from attention_transfer.data.listed_splits import annotated_labels, imagenet_folder, listed_splits
from attention_transfer.data.repeated_files import LabelledFile, once_each
from attention_transfer.data.splitting import named_splits, split_of
from attention_transfer.data.unread_files import unread_images
from attention_transfer.errors import InputError

__all__ = ["FolderSplits", "folder_splits"]


@dataclass
class FolderSplits:
    """The classes, the files of each split, and what the user is to know of how they were found."""

    classes: list[str]
    splits: dict[str, SplitFiles]
    notices: list[str] = field(default_factory=list)


def folder_splits(folder: Path) -> FolderSplits:
    """Find the splits of a folder of images.

    Raises:
        InputError: a split that cannot be used, folders that may be splits or classes or are
            neither, classes that differ between splits, or an image of two classes or splits.
    """
    found = _found(folder)
    files = {
        split: [
            LabelledFile(part.folder / path, found.classes[label], str(part.folder / path))
            for path, label in zip(part.paths, part.labels.tolist(), strict=True)
        ]
        for split, part in found.splits.items()
    }
    kept, notices = once_each(str(folder), files, "remove the link, or move the folder elsewhere")
    for split, part in found.splits.items():
        part.paths = [part.paths[index] for index in kept[split]]
        part.labels = part.labels[torch.tensor(kept[split], dtype=torch.int64)]
    found.notices += notices
    return found


def _found(folder: Path) -> FolderSplits:
    """Find the splits of a folder of images, whose files may be there twice."""
    listed = listed_splits(folder)
    if listed is not None:
        splits = {
            split: _split(listed.folder, [(Path(path), label) for path, label in files])
            for split, files in listed.files.items()
        }
        unlisted = sum(1 for _ in _images_in(listed.folder)) - sum(map(len, listed.files.values()))
        left = [f"{unlisted} images in {listed.folder} are on no list: they are left out"]
        return FolderSplits(listed.classes, splits, left if unlisted > 0 else [])
    root = imagenet_folder(folder)
    entries = user_folders(root)
    with_classes = [entry for entry in entries if split_of(entry.name) and user_folders(entry)]
    if not with_classes or _are_classes(root, entries, with_classes):
        return _classes_alone(root, entries, with_classes)
    found = _of_splits(root, entries, with_classes)
    if root != folder:
        found.notices.insert(0, f"the images of {folder} are those in {root}")
    return found


def _are_classes(root: Path, entries: Sequence[Path], with_classes: Sequence[Path]) -> bool:
    """Return whether folders with the names of splits are classes, beside other classes.

    Raises:
        InputError: they may be either.
    """
    if sum(split_of(entry.name) is not None for entry in entries) > 1:
        return False
    others = [entry for entry in entries if not split_of(entry.name) and _has_images(entry)]
    (split,) = with_classes
    if not others or split_of(split.name) is None:
        return False
    if _has_images(split):
        return True
    raise InputError(
        f"{root} has {split.name}/ with subfolders, as a split has, beside folders of images "
        f"({abridged([entry.name for entry in others])}), as classes are; if {split.name} is a "
        f"class, rename it or put its images straight into it; if it is a split, move the others "
        "elsewhere"
    )


def _classes_alone(
    root: Path, entries: Sequence[Path], with_classes: Sequence[Path]
) -> FolderSplits:
    """Return a folder whose subfolders are the classes, as one split or with splits in each."""
    filled = [entry for entry in entries if next(_images_in(entry), None) is not None]
    if filled and all(split_of(entry.name) for entry in filled):
        raise InputError(
            f"{root}/{filled[0].name} has images and no subfolders for its classes; sort the "
            "images into a subfolder for each class, or give their labels as csv:FILE"
        )
    notices = check_are_classes(root, entries)
    with_splits = _splits_in_classes(root, filled)
    if with_splits is not None:
        return with_splits
    names = [entry.name for entry in entries]
    found = FolderSplits(names, {}, notices)
    found.splits["train"] = _by_class(root, _positions(root, names), found)
    for entry in with_classes:
        found.notices.append(
            f"{entry} is a class beside {len(entries) - 1} others, not a split: it holds images "
            "itself"
        )
    return found


def _splits_in_classes(root: Path, entries: Sequence[Path]) -> FolderSplits | None:
    """Return a folder whose classes hold the splits; None: fewer than two classes, or no splits.

    Raises:
        InputError: some classes lack a split that others have, none is to train on, or a split in
            a class holds classes itself.
    """
    inside = {entry: named_splits(str(entry), map(_name, user_folders(entry))) for entry in entries}
    splits = {split for named in inside.values() if len(named) > 1 for split in named}
    if len(entries) < 2 or not splits:
        return None
    shown = [split for split in ("train", "validation", "test") if split in splits]
    lacking = [
        f"{entry.name} lacks {', '.join(split for split in shown if split not in named)}"
        for entry, named in inside.items()
        if splits - named.keys()
    ]
    if lacking or "train" not in splits:
        fault = abridged(lacking) if lacking else "and no train"
        raise InputError(
            f"the classes in {root} hold the splits {', '.join(shown)}, {'but ' * bool(lacking)}"
            f"{fault}; give each class the same splits, train among them, or put the splits above "
            f"the classes: {root}/train/{entries[0].name}"
        )
    for entry, named in inside.items():
        train = entry / named["train"]
        if len(user_folders(train)) > 1 and not _has_images(train):
            raise InputError(
                f"{train} holds {abridged([path.name for path in user_folders(train)])}: if these "
                f"are the classes, give folder:{entry}; if {entry.name} is the class, put its "
                f"images straight into {train}"
            )
    classes = [entry.name for entry in entries]
    found = FolderSplits(classes, {})
    found.notices.append(
        f"the classes in {root} hold the splits {', '.join(shown)} each: they are read as such"
    )
    labels = _positions(root, classes)
    unused = [path.relative_to(root).as_posix() for path in _beside_splits(inside)]
    if unused:
        found.notices.append(f"left out of {root}, whose classes hold splits: {abridged(unused)}")
    left: list[Path] = []
    for split in shown:
        folders = {normal_form(entry.name): entry / named[split] for entry, named in inside.items()}
        found.splits[split] = _files_of_classes(root, folders, labels, found.classes, left)
        strays = [path for paths in found.splits[split].unread.values() for path in paths]
        found.notices += _left_out(root, strays, left)
        left.clear()
    return found


def _beside_splits(inside: Mapping[Path, Mapping[str, str]]) -> Iterator[Path]:
    """Yield the images and folders in classes that hold splits, but for the splits."""
    for entry, named in inside.items():
        for path in sorted(entry.iterdir()):
            unused = is_users(path.name) and path.name not in named.values()
            if unused and (path.is_dir() or is_image(path)):
                yield path


def _name(path: Path) -> str:
    return path.name


def _of_splits(root: Path, entries: Sequence[Path], with_classes: Sequence[Path]) -> FolderSplits:
    """Return a folder with a subfolder for each split."""
    named = named_splits(str(root), [entry.name for entry in entries if split_of(entry.name)])
    if "train" not in named or root / named["train"] not in with_classes:
        others = [name for split, name in sorted(named.items(), reverse=True) if split != "train"]
        raise InputError(
            f"{root} has the splits {', '.join(others)} and no train with a subfolder for each "
            "class; add one, or give a folder whose subfolders are the classes"
        )
    train = root / named["train"]
    notices = check_are_classes(train, user_folders(train))
    found = FolderSplits([entry.name for entry in user_folders(train)], {}, notices)
    labels = _positions(train, found.classes)
    others = [
        entry.name
        for entry in sorted(root.iterdir())
        if entry.name not in named.values() and (entry.is_dir() or is_image(entry))
    ]
    if others:
        found.notices.append(f"left out of {root}, which has splits: {abridged(others)}")
    for split in ("train", "validation", "test"):
        if split not in named:
            continue
        name = named[split]
        files = _files_of_split(root / name, split, train, labels, found)
        if files is not None:
            found.splits[split] = files
    return found


def _files_of_split(
    path: Path, split: str, train: Path, labels: Mapping[str, int], found: FolderSplits
) -> SplitFiles | None:
    """Return the files of one split's folder, or None and a notice if it has none.

    Raises:
        InputError: it has images that no class is known of, or classes that train has not.
    """
    if split != "train":
        annotated = annotated_labels(path)
        if annotated is not None:
            return _annotated(path, annotated.source, annotated.classes, labels, found)
    classes = user_folders(path)
    unlabelled = split == "test" and _is_unlabelled_test(path, labels)
    if unlabelled:
        found.notices.append(f"{path} has no labels: it is left out")
        return None
    if not classes:
        if next(_images_in(path), None) is None:
            unread = unread_images(map(str, files_under(path)))
            found.notices.append(
                f"{path} holds no images: it is left out{f'; {unread}' if unread else ''}"
            )
            return None
        raise InputError(
            f"{path} has images and no subfolders for their classes, so it cannot be the {split} "
            f"split; {_sorting(path)}, give labels as csv:FILE, or move the folder elsewhere"
        )
    unknown = [entry.name for entry in classes if normal_form(entry.name) not in labels]
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} classes that {train} has not: "
            f"{', '.join(unknown[:5])}; expected the same subfolders in every split ({split})"
        )
    return _by_class(path, labels, found)


def _is_unlabelled_test(path: Path, labels: Mapping[str, int]) -> bool:
    """Return whether a folder is the test split of ImageNet or Tiny-ImageNet, without labels."""
    if next(_images_in(path), path).name.startswith("ILSVRC2012_test_"):
        return True
    beside = [annotated_labels(entry) for entry in user_folders(path.parent)]
    folders = [entry for entry in user_folders(path) if normal_form(entry.name) in labels]
    return any(beside) and not folders


def _sorting(path: Path) -> str:
    """Return how the images of a split without subfolders get their classes."""
    if next(_images_in(path), path).name.startswith("ILSVRC2012_val_"):
        return "put LOC_val_solution.csv, which Kaggle's archive has, into a folder above it"
    return "sort them into the subfolders of train"


def _annotated(
    path: Path,
    source: Path,
    classes: Mapping[str, str],
    labels: Mapping[str, int],
    found: FolderSplits,
) -> SplitFiles:
    """Return the files of a flat folder, whose classes a file lists by name."""
    files = list(_images_in(path))
    unknown = [file.name for file in files if classes.get(file.stem, "") not in labels]
    if unknown:
        raise InputError(
            f"{source} gives no class of train for {len(unknown)} of {len(files)} images in "
            f"{path}: {abridged(unknown, 3)}; add them, or remove the images"
        )
    found.notices.append(f"the classes of {path} are those in {source}")
    return _split(path, [(file.relative_to(path), labels[classes[file.stem]]) for file in files])


def _positions(folder: Path, classes: Sequence[str]) -> dict[str, int]:
    """Return the class index of each name, in one of the forms that Unicode has of it.

    Raises:
        InputError: two names differ in their form alone.
    """
    labels = {normal_form(name): label for label, name in enumerate(classes)}
    if len(labels) < len(classes):
        normal = [normal_form(name) for name in classes]
        twice = next(name for name in normal if normal.count(name) > 1)
        raise InputError(
            f"{folder} has two folders called {twice}, in two forms of Unicode; merge them"
        )
    return labels


def _by_class(folder: Path, labels: Mapping[str, int], found: FolderSplits) -> SplitFiles:
    """Return every image file of every class, in the order of their names."""
    left = [entry for entry in sorted(folder.iterdir()) if not is_users(entry.name)]
    strays = [
        entry.name for entry in sorted(folder.iterdir()) if is_users(entry.name) and entry.is_file()
    ]
    entries = user_folders(folder)
    names = _positions(folder, [entry.name for entry in entries])
    folders = dict(zip(names, entries, strict=True))
    split = _files_of_classes(folder, folders, labels, found.classes, left)
    strays += [path for paths in split.unread.values() for path in paths]
    found.notices += _left_out(folder, strays, left)
    return split


def _files_of_classes(
    root: Path,
    folders: Mapping[str, Path],
    labels: Mapping[str, int],
    classes: Sequence[str],
    left: list[Path],
) -> SplitFiles:
    """Return the image files of every class in its folder, in the order of their names.

    Args:
        root: that the paths are relative to.
        folders: of the classes, by their names in normal form.
        labels: the class index of each name.
        classes: the names as messages have them.
        left: gets what systems left behind.
    """
    files: list[tuple[Path, int]] = []
    unread: dict[str, list[str]] = {}
    for name, label in labels.items():
        for path in files_under(folders[name], left) if name in folders else ():
            relative = path.relative_to(root)
            if is_image(path):
                files.append((relative, label))
            else:
                unread.setdefault(classes[label], []).append(relative.as_posix())
    split = _split(root, files)
    split.unread = unread
    return split


def _left_out(folder: Path, strays: Sequence[str], left: Iterable[Path]) -> Iterator[str]:
    """Yield the notice of files that are no images, and of what systems left behind."""
    behind = [path.relative_to(folder).as_posix() for path in left]
    parts = []
    if strays:
        shown = ", ".join([*strays[:5], *["..."][: len(strays) - 5]])
        parts.append(f"{len(strays)} files in {folder} that are not images of a class ({shown})")
    if behind:
        where = "" if strays else f" in {folder}"
        parts.append(f"what systems leave behind{where} ({abridged(behind)})")
    if parts:
        yield f"skipped {' and '.join(parts)}"


def _split(folder: Path, files: Sequence[tuple[Path, int]]) -> SplitFiles:
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return SplitFiles(folder, [path.as_posix() for path, _ in files], labels)


def _has_images(folder: Path) -> bool:
    """Return whether a folder holds images itself, not in subfolders."""
    return any(is_users(entry.name) and is_image(entry) for entry in folder.iterdir())


def _images_in(folder: Path) -> Iterator[Path]:
    return filter(is_image, files_under(folder))
