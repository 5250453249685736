"""Checkpoints: the state of a run after an epoch, whole or absent, the last two kept."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from attention_transfer.errors import InputError

__all__ = ["load_last_checkpoint", "save_checkpoint"]

KEPT = 2


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> None:
    """Writes ``folder/epoch-NNNN/`` with the state and its checksum, then drops the oldest.

    The folder gets its name only when all of it is on the disk.
    """
    folder.mkdir(exist_ok=True)
    final = folder / f"epoch-{epoch:04d}"
    partial = folder / f".{final.name}.partial"
    for leftover in (partial, final):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    torch.save(state, partial / "state.pt")
    (partial / "sha256").write_text(_checksum(partial / "state.pt") + "\n", encoding="ascii")
    for name in ("state.pt", "sha256"):
        with (partial / name).open("rb") as file:
            os.fsync(file.fileno())
    partial.rename(final)
    for old in _epochs(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_last_checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    """The epoch and state of the newest whole checkpoint; only tensors and plain values are read.

    Raises:
        InputError: there is none.
    """
    for candidate in reversed(_epochs(folder)):
        try:
            expected = (candidate / "sha256").read_text(encoding="ascii").strip()
            if _checksum(candidate / "state.pt") == expected:
                state = torch.load(candidate / "state.pt", weights_only=True, map_location="cpu")
                return int(candidate.name.removeprefix("epoch-")), state
        except Exception:  # whatever is in the file: a damaged pickle can raise anything
            continue
    raise InputError(f"{folder} holds no whole checkpoint to resume from; start a new run")


def _epochs(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
