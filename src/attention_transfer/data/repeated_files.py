"""Image files that a data set holds more than once: by a link, or by another spelling of a path."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attention_transfer.data.classes import abridged
from attention_transfer.errors import InputError

__all__ = ["LabelledFile", "once_each"]


class LabelledFile(NamedTuple):
    """A file of a data set."""

    path: Path
    label: str
    name: str
    """What messages call it."""


def _real_paths(paths: Iterable[Path]) -> list[str]:
    """Return the path of each file without links, ``.`` and ``..``; folders are resolved once."""
    folders: dict[str, str] = {}
    real = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        whole = os.path.join(folders[folder], name)
        real.append(os.path.realpath(whole) if os.path.islink(whole) else whole)
    return real


def once_each(
    what: str, splits: Mapping[str, Sequence[LabelledFile]], remedy: str
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the positions of the files to keep in each split: every file once.

    Args:
        what: holds the files, for messages.
        splits: the files of each split.
        remedy: what to do about a file that has several labels or is in several splits.

    Returns:
        The positions, and the notice of files that are there twice with one label in one split.

    Raises:
        InputError: a file has several labels, or is in several splits.
    """
    first: dict[str, tuple[str, str, str]] = {}
    kept: dict[str, list[int]] = {}
    twice: list[str] = []
    contradictions: list[str] = []
    for split, files in splits.items():
        kept[split] = []
        real = _real_paths(file.path for file in files)
        for index, ((_, label, name), place) in enumerate(zip(files, real, strict=True)):
            if place not in first:
                first[place] = name, label, split
                kept[split].append(index)
                continue
            other_name, other_label, other_split = first[place]
            if (other_label, other_split) == (label, split):
                twice.append(name)
                continue
            spelled = "" if name == other_name else f", by the path {name}"
            contradictions.append(
                f"{other_name} as {other_label!r} in {other_split}, and as {label!r} in "
                f"{split}{spelled}"
            )
    if contradictions:
        more = f" (and {len(contradictions) - 1} more)" if len(contradictions) > 1 else ""
        raise InputError(f"{what} has the image {contradictions[0]}{more}; {remedy}")
    notices = [f"{what} has {len(twice)} images twice ({abridged(twice)})"] if twice else []
    return kept, notices
