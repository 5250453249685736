"""Row 19: a pickle that runs code, wherever a file of it could be read, is refused and not run."""

import hashlib
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attention_transfer as at
from attention_transfer.cli import main
from conftest import SMALL, CrashAfter, CrashError

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "epochs": 2, "probes": 2, "batch_size": 16}


class Malice:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("sentinel", "w")


def test_the_pickle_would_run_code() -> None:
    pickle.loads(pickle.dumps(Malice())).close()
    assert Path("sentinel").exists()


def interrupted() -> Path:
    """Return the last checkpoint of a run that crashed; the one before is deleted."""
    with pytest.raises(CrashError):
        at.train("wrn-10-1", out="run", checkpoint_steps=1, progress=CrashAfter(4), **TINY)
    *others, last = sorted(Path("run/checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    return last


def sealed(checkpoint: Path, content: bytes) -> None:
    """Write a checkpoint's state with the checksum that belongs to it."""
    (checkpoint / "state.pt").write_bytes(content)
    (checkpoint / "sha256").write_text(hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("where", ["all of it", "the optimizer", "the identity", "bare"])
def test_a_checkpoint_runs_no_code(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = interrupted()
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    file = io.BytesIO()
    if where == "bare":
        file.write(pickle.dumps(Malice(), protocol=2))
    elif where == "all of it":
        torch.save(Malice(), file)
    else:
        torch.save({**state, where.removeprefix("the "): Malice()}, file)
    sealed(checkpoint, file.getvalue())
    assert main(["resume", "run"]) == 2
    error = capsys.readouterr().err
    assert f"the checkpoint {checkpoint} is damaged" in error
    assert "no other is whole: start a new run" in error
    assert not Path("sentinel").exists()


def test_a_compressed_checkpoint_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred megabytes of zeros in a hundred kilobytes."""
    checkpoint = interrupted()
    file, packed = io.BytesIO(), io.BytesIO()
    torch.save({"zeros": torch.zeros(25_000_000)}, file)
    with (
        zipfile.ZipFile(file) as stored,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in stored.infolist():
            archive.writestr(entry.filename, stored.read(entry))
    assert len(packed.getvalue()) < 200_000
    sealed(checkpoint, packed.getvalue())
    assert main(["resume", "run"]) == 2
    assert "it is compressed, which checkpoints never are" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["attention/epoch-0000.npz", "attention/probes.npz"])
def test_arrays_of_objects_are_not_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    at.train("wrn-10-1", out="run", **TINY)
    np.savez(Path("run") / name, images=np.array([Malice()], dtype=object))
    assert main(["report", "run"]) == 2
    assert f"run/{name} is damaged (ValueError)" in capsys.readouterr().err
    assert not Path("sentinel").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_weights_are_safetensors(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = io.BytesIO(pickle.dumps(Malice(), protocol=2))
    if kind == "torch":
        torch.save(Malice(), content)
    Path("weights.safetensors").write_bytes(content.getvalue())
    teacher = "wrn-10-1@weights.safetensors"
    assert main(["distill", "--teacher", teacher, "--student", "wrn-10-1"]) == 2
    assert (
        "pickled weights are not loaded under this name, because they can run code"
        in capsys.readouterr().err
    )
    assert not Path("sentinel").exists()
