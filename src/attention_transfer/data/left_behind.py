"""Files in folders of images, without what operating systems and storage devices leave behind."""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["files_under", "is_users", "user_folders"]

_NAMES = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("__macosx", "__pycache__", "network trash folder", "temporary items"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
        *("lost+found", "lost.dir"),
    )
)
"""Names that Windows, macOS, Linux, Android and storage devices (Synology, QNAP) give, in lower
case; names that begin with a dot or with ~$ are left behind as well.
"""


def is_users(name: str) -> bool:
    """Return False for names of hidden files and those that systems leave behind.

    >>> [is_users(name) for name in ("cat", "@eaDir", "._1.jpg", "Thumbs.db")]
    [True, False, False, False]
    """
    return not name.startswith((".", "~$")) and name.lower() not in _NAMES


def user_folders(folder: Path) -> list[Path]:
    """Return a folder's subfolders, sorted by their names as text."""
    entries = (entry for entry in folder.iterdir() if is_users(entry.name) and entry.is_dir())
    return sorted(entries, key=lambda entry: entry.name)


def files_under(folder: Path, left: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files at any depth; links are followed, and each folder is visited once.

    Args:
        folder: where to look.
        left: gets the files and folders that systems left behind, which are not yielded.
    """
    visited: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        if left is not None:
            left += [Path(path) / name for name in sorted(folders + files) if not is_users(name)]
        folders[:] = sorted(filter(is_users, folders))
        yield from (Path(path) / name for name in sorted(files) if is_users(name))
