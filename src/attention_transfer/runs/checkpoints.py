"""Checkpoints: the state of a run after a step, whole or absent, the last two kept."""

import errno
import hashlib
import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch

from attention_transfer.errors import InputError, TrainingError, first_line
from attention_transfer.files import read_bytes, replacing

__all__ = ["Checkpoint", "load_checkpoint", "load_last_checkpoint", "save_checkpoint"]

DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EFBIG, errno.EIO)
"""Errors of reading that are faults of the files. Others, such as a missing permission, are faults
of the machine: the checkpoint may be whole.
"""

OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)


class Checkpoint(NamedTuple):
    """The state of a run after some whole epochs and steps of the next one."""

    epoch: int
    """Whole epochs, with their validation."""
    step: int
    """Steps of the next epoch; all of them if it has still to be validated."""
    state: dict[str, Any]
    """Tensors and plain values; if it was loaded with ``epoch``, ``step`` and ``number``."""
    number: int = 0
    """The running number that it was saved under, from 1."""
    sha256: str = ""
    """Of the file that it was loaded from."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, after: int | None = None) -> int:
    """Write a checkpoint with its checksum, read it back, then delete all but the last two.

    Checkpoints are ordered by a running number, since a changed batch size moves the steps.

    Args:
        folder: of the checkpoints.
        checkpoint: to write; its own number is not used.
        after: number of the checkpoint that the run was resumed from or wrote last; newer ones,
            which must be damaged, are deleted. None: the newest.

    Returns:
        The number of the new checkpoint.

    Raises:
        OSError: it cannot be written, or reads back differently; earlier checkpoints are intact.
    """
    folder.mkdir(exist_ok=True)
    earlier = {path: _number(path) for path in _checkpoints(folder)}
    number = 1 + max(earlier.values(), default=0)
    path = folder / _name(checkpoint.epoch, checkpoint.step)
    if path.exists():  # it stays until the new one is whole
        path = path.with_name(f"{path.name}-{number}")
    with replacing(path) as temporary:
        temporary.mkdir()
        expected = _write(
            temporary / "state.pt",
            {
                **checkpoint.state,
                "epoch": checkpoint.epoch,
                "step": checkpoint.step,
                "number": number,
            },
        )
        (temporary / "sha256").write_text(expected + "\n", "ascii")
        (temporary / "number").write_text(f"{number}\n", "ascii")
    if _checksum(path / "state.pt") != expected:
        shutil.rmtree(path)
        raise OSError(f"{path} reads back differently than it was written: the disk is damaged")
    whole = [old for old, place in earlier.items() if after is None or place <= after]
    for old in earlier.keys() - whole[-1:]:
        shutil.rmtree(old)
    return number


def load_last_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and a line about each newer one that is damaged.

    None where there is no checkpoint yet. Only tensors and plain values are read, so that a
    checkpoint cannot run code.

    Raises:
        InputError: there are checkpoints, and none is whole, or one cannot be read though it may
            be whole.
        TrainingError: there is not enough memory to read one.
    """
    damaged: list[str] = []
    path = folder
    try:
        for path in reversed(_checkpoints(folder)):
            try:
                return _read(path), damaged
            except Exception as error:  # a damaged pickle can raise anything
                if not _is_damage(error):
                    raise
                damaged.append(f"the checkpoint {path} is damaged ({first_line(error)})")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; it may be whole, so that no older checkpoint "
            "is used: remove the cause, then resume the run again"
        ) from None
    except (MemoryError, RuntimeError):
        raise TrainingError(
            f"not enough memory to read {path}; free some, then resume the run again"
        ) from None
    if damaged:
        raise InputError(
            f"{'; '.join(damaged)}; no other is whole: start a new run, or delete {folder} to "
            "begin this one again"
        )
    return None, []


def load_checkpoint(folder: Path, epoch: int, step: int, sha256: str) -> Checkpoint:
    """Return one checkpoint, which another process has chosen.

    Raises:
        InputError: it is missing or damaged here, or another file than that process has read.
    """
    for path in reversed(_checkpoints(folder)):
        with suppress(Exception):  # a damaged pickle can raise anything
            checkpoint = _read(path)
            if checkpoint.sha256 == sha256:
                return checkpoint
    raise InputError(f"{folder / _name(epoch, step)} is missing, damaged or another file here")


def _is_damage(error: Exception) -> bool:
    """Return whether an error of reading a checkpoint is the checkpoint's own fault."""
    if isinstance(error, OSError):
        return error.errno in DAMAGE
    memory = isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    return not (memory or isinstance(error, MemoryError))


def _read(path: Path) -> Checkpoint:
    """Read one checkpoint; :func:`load_last_checkpoint` turns what this raises into an error."""
    expected = read_bytes(path / "sha256", most=100).decode("ascii").strip()
    if _checksum(path / "state.pt") != expected:
        raise ValueError("its checksum is wrong")
    _check_stored(path / "state.pt")
    state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a run")
    position: list[Any] = [state.get(key) for key in ("epoch", "step", "number")]
    if not all(type(value) is int and value >= 0 for value in position):
        raise ValueError("it does not say which step it was saved after")
    epoch, step, number = position
    name = _name(epoch, step)
    if path.name not in (name, f"{name}-{number}") or _number(path) != number:
        raise ValueError(f"it is number {number}, {name}, under another name")
    return Checkpoint(epoch, step, state, number, expected)


def _write(path: Path, state: dict[str, Any]) -> str:
    """Write a state to a file and return its checksum."""
    with path.open("wb") as file:
        writer = _HashingWriter(file)
        try:
            torch.save(state, cast(IO[bytes], writer))
        except RuntimeError:  # torch's, about the file that was cut short
            if writer.error is None:
                raise
            raise writer.error from None
    return writer.digest.hexdigest()


class _HashingWriter:
    """A file for ``torch.save`` that computes a checksum of what is written.

    It keeps the system's error, in whose place torch raises one of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def _check_stored(path: Path) -> None:
    """Raise a ValueError if a checkpoint's arrays are compressed: torch compresses none."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which checkpoints never are")


def _name(epoch: int, step: int) -> str:
    """Return the name of a checkpoint's folder.

    >>> _name(2, 70)
    'epoch-0002-step-0000070'
    """
    return f"epoch-{epoch:04d}-step-{step:07d}"


def _number(path: Path) -> int:
    """Return the running number beside a checkpoint; 0 if there is none."""
    try:
        return int(read_bytes(path / "number", most=20))
    except ValueError:
        return 0
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return 0


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the oldest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    paths = [folder / name for name in names if name.startswith("epoch-")]
    return sorted(paths, key=lambda path: (_number(path), path.name))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
