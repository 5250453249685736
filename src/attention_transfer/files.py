"""Reading with a bound, and atomic writing.

After a crash a file holds its old content or its new one, never a part. New content goes to a
temporary path beside the target, is flushed to the disk, and takes the target's name in one step. A
temporary path that a killed process left behind is overwritten by the next writer of the target.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "append_line",
    "move_into_place",
    "partial_path",
    "read_bytes",
    "read_json",
    "replacing",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_text",
]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block succeeds.

    The block creates a file or a folder at the temporary path. If it raises, the temporary path is
    removed and ``path`` stays as it was. One writer at a time per path.

    Args:
        path: the target; a symbolic link is followed, and a device or a pipe is written directly.

    Raises:
        OSError: the target's folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    target = Path(os.path.realpath(path))
    if _is_special(target):
        yield target
        return
    temporary = partial_path(target)
    _remove(temporary)
    try:
        yield temporary
        move_into_place(temporary, target)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise


def partial_path(path: Path) -> Path:
    """Return the hidden path beside ``path`` where its new content is written first.

    Example:
        >>> partial_path(Path("run/record.json")).name
        '.record.json.partial'
    """
    return path.with_name(f".{path.name}.partial")


def move_into_place(temporary: Path, path: Path) -> None:
    """Flush a file, or a folder of files, to the disk and give it its final name.

    A file replaces the file of that name in one step. A folder replaces a folder of that name,
    which is deleted just before.
    """
    if temporary.is_dir():
        for entry in temporary.iterdir():
            _flush(entry)
        shutil.rmtree(path, ignore_errors=True)
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file of at most ``most`` bytes; a folder may come from someone else.

    Raises:
        OSError: it cannot be read, or is larger.

    Example:
        >>> read_bytes(Path("/dev/zero"), most=100)
        Traceback (most recent call last):
        OSError: [Errno 27] it has more than 100 bytes, which no such file needs: '/dev/zero'
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        reason = f"it has more than {most:,} bytes, which no such file needs"
        raise OSError(errno.EFBIG, reason, str(path))
    return content


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read, or is larger.
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(read_bytes(path, most))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a file, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text to a file as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write NumPy arrays by name as a compressed ``.npz`` file, atomically."""
    import numpy as np  # here, as every command imports this module and few write arrays

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def append_line(path: Path, line: str) -> None:
    """Append one line to a text file and flush it to the disk; a crash can cut only this line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _is_special(path: Path) -> bool:
    """Return whether a path is a device, pipe or socket, which must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
