"""Checkpoints: the state of a run after an epoch, whole or absent, the last two kept."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from attention_transfer.errors import InputError
from attention_transfer.files import replacing

__all__ = ["load_last_checkpoint", "save_checkpoint"]

CHECKPOINTS_KEPT = 2


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> None:
    """Write ``folder/epoch-NNNN/`` with the state and its checksum, then delete the oldest."""
    folder.mkdir(exist_ok=True)
    with replacing(folder / f"epoch-{epoch:04d}") as temporary:
        temporary.mkdir()
        torch.save(state, temporary / "state.pt")
        (temporary / "sha256").write_text(_checksum(temporary / "state.pt") + "\n", "ascii")
    for old in _checkpoints(folder)[:-CHECKPOINTS_KEPT]:
        shutil.rmtree(old)


def load_last_checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the epoch and state of the newest whole checkpoint.

    Only tensors and plain values are read, so that a checkpoint cannot run code.

    Raises:
        InputError: there is no whole checkpoint.
    """
    for candidate in reversed(_checkpoints(folder)):
        try:
            expected = (candidate / "sha256").read_text(encoding="ascii").strip()
            if _checksum(candidate / "state.pt") == expected:
                state = torch.load(candidate / "state.pt", weights_only=True, map_location="cpu")
                return int(candidate.name.removeprefix("epoch-")), state
        except Exception:  # a damaged pickle can raise anything
            continue
    raise InputError(f"{folder} holds no whole checkpoint to resume from; start a new run")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
