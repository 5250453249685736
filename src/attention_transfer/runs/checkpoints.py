"""Checkpoints: the state of a run after a step, whole or absent, the last two kept."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch

from attention_transfer.errors import InputError, first_line
from attention_transfer.files import read_bytes, replacing

__all__ = ["Checkpoint", "load_checkpoint", "load_last_checkpoint", "save_checkpoint"]

CHECKPOINTS_KEPT = 2


class Checkpoint(NamedTuple):
    """The state of a run after some whole epochs and steps of the next one."""

    epoch: int
    """Whole epochs, with their validation."""
    step: int
    """Steps of the next epoch; all of them if it has still to be validated."""
    state: dict[str, Any]
    """Tensors and plain values."""
    sha256: str = ""
    """Of the file that it was loaded from."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint with its checksum, read it back, then delete all but the last two.

    Raises:
        OSError: it cannot be written, or reads back differently; earlier checkpoints are intact.
    """
    folder.mkdir(exist_ok=True)
    path = folder / _name(checkpoint.epoch, checkpoint.step)
    with replacing(path) as temporary:
        temporary.mkdir()
        with (temporary / "state.pt").open("wb") as file:
            writer = _HashingWriter(file)
            try:
                torch.save(checkpoint.state, cast(IO[bytes], writer))
            except RuntimeError:  # torch's, about the file that was cut short
                if writer.error is None:
                    raise
                raise writer.error from None
        expected = writer.digest.hexdigest()
        (temporary / "sha256").write_text(expected + "\n", "ascii")
    if _checksum(path / "state.pt") != expected:
        shutil.rmtree(path)
        raise OSError(f"{path} reads back differently than it was written: the disk is damaged")
    for old in _checkpoints(folder)[:-CHECKPOINTS_KEPT]:
        shutil.rmtree(old)


def load_last_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and a line about each newer one that is damaged.

    None where there is no checkpoint yet. Only tensors and plain values are read, so that a
    checkpoint cannot run code.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    damaged: list[str] = []
    for candidate in reversed(_checkpoints(folder)):
        try:
            return _load(candidate), damaged
        except Exception as error:  # a damaged pickle can raise anything
            damaged.append(f"the checkpoint {candidate} is damaged ({first_line(error)})")
    if damaged:
        raise InputError(
            f"{'; '.join(damaged)}; no other is whole: start a new run, or delete {folder} to "
            "begin this one again"
        )
    return None, []


def load_checkpoint(folder: Path, epoch: int, step: int, sha256: str) -> Checkpoint:
    """Return one checkpoint, which another process has chosen.

    Raises:
        InputError: it is missing, damaged, or another file than that process has read.
    """
    path = folder / _name(epoch, step)
    try:
        checkpoint = _load(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} cannot be read ({first_line(error)})") from None
    if checkpoint.sha256 != sha256:
        raise InputError(
            f"{path} has the checksum {checkpoint.sha256[:16]}, expected {sha256[:16]}"
        )
    return checkpoint


def _load(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder; any exception may be raised if it is damaged."""
    epoch, step = _position(path)
    expected = read_bytes(path / "sha256", most=100).decode("ascii").strip()
    if _checksum(path / "state.pt") != expected:
        raise ValueError("its checksum is wrong")
    _check_stored(path / "state.pt")
    state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a run")
    return Checkpoint(epoch, step, state, expected)


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
    return f"epoch-{epoch:04d}-step-{step:07d}"


def _position(path: Path) -> tuple[int, int]:
    """Return epoch and step of a checkpoint's folder.

    >>> _position(Path("epoch-0002-step-0000070"))
    (2, 70)
    """
    found = re.fullmatch(r"epoch-(\d+)-step-(\d+)", path.name)
    if found is None:
        raise ValueError("its name is not of the form epoch-NNNN-step-NNNNNNN")
    return int(found[1]), int(found[2])


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the oldest first."""

    def position(path: Path) -> tuple[int, int]:
        try:
            return _position(path)
        except ValueError:
            return -1, -1

    return sorted(folder.glob("epoch-*"), key=position)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
