"""The lock of a run's folder: one process at a time trains in it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attention_transfer.errors import InputError

__all__ = ["locked"]

_held: set[Path] = set()
"""Folders locked by this process, to which the system would grant the lock again."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder for this process inside the block.

    It is a record lock on ``.lock``: it ends with this process, however that ends, and a child
    process, such as a loader worker that outlives a killed parent, does not inherit it. Where the
    system has no such locks (Windows), nothing is locked.

    Raises:
        InputError: another process, or another call in this one, holds it.
    """
    if os.name == "nt":
        yield
        return
    path = (folder / ".lock").resolve()
    if path in _held:
        raise InputError(f"this process already trains the run in {folder}; wait until it ends")
    descriptor = _taken(path, folder)
    try:
        with suppress(OSError):  # on a full disk the lock holds without its holder's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _taken(path: Path, folder: Path) -> int:
    """Return a descriptor of the lock's file, which this process has locked."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise InputError(
                f"{holder} trains the run in {folder}; wait until it ends, or stop it"
            ) from None
        os.close(descriptor)  # its last holder has removed the file in between
