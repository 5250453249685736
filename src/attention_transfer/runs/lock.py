"""The lock of a run's folder: one process at a time trains in it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attention_transfer.errors import InputError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder for this process inside the block.

    It is the system's lock on the file ``.lock``: it ends with this process, however that ends, and
    a child process, such as a loader worker that outlives a killed parent, does not keep it.

    Raises:
        InputError: another process, or another call in this one, holds it.
    """
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(_refusal(path, folder)) from None
    try:
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            path.write_text(f"{_this_process()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def _refusal(path: Path, folder: Path) -> str:
    holder = ""
    with suppress(OSError):  # Windows lets no one read a locked file
        holder = path.read_text(encoding="utf-8", errors="replace").strip()
    if holder == _this_process():
        return f"this process already trains the run in {folder}; wait until it ends"
    return (
        f"{holder or 'another process'} trains the run in {folder}; wait until it ends, or stop it"
    )


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
