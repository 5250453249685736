"""Row 35: a flipped bit in weights or in a cache is found before anything is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import attention_transfer as at
from attention_transfer.cache import TargetCache
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.experiments.demo import packaged_teacher
from attention_transfer.runs import Run
from conftest import SMALL, CrashAfter, CrashError
from reliability.killing import TINY as TINY_FLAGS
from reliability.killing import run

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "epochs": 2, "probes": 0, "batch_size": 16}


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture
def teacher() -> Run:
    return at.train("wrn-10-1", out="teacher", **TINY)


# Of the last number: the file reads well, and holds other weights.
WEIGHTS = Path("teacher/model.safetensors")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate teacher",
        "evaluate wrn-10-1@teacher/model.safetensors --data cluttered-digits",
        "distill --teacher teacher --student wrn-10-1 --out run",
        "distill --teacher wrn-10-1@teacher/model.safetensors --student wrn-10-1 --out run",
        "train --model teacher --out run",
        "cache build targets --teacher teacher --views 1",
    ],
)
def test_a_flipped_bit_in_weights_is_refused(
    command: str, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(WEIGHTS, -1)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"attention-transfer: {WEIGHTS} is damaged, or was replaced: its check")
    assert "restore it from a copy, or train the run again" in error
    assert not Path("run").exists()
    assert not Path("targets").exists()


def test_a_teacher_damaged_between_stop_and_resume_is_refused(
    teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CrashError):
        at.distill(teacher="teacher", student="wrn-10-1", out="run", progress=CrashAfter(4), **TINY)
    flip(WEIGHTS, -1)
    for more in ([], ["--allow-changes"]):
        assert main(["resume", "run", *more]) == 2
        assert "model.safetensors is damaged, or was replaced" in capsys.readouterr().err


def test_the_packaged_teacher_is_checked() -> None:
    assert at.models.load_run(packaged_teacher()).card is not None
    shutil.copytree(packaged_teacher(), "teacher")
    flip(WEIGHTS, -1)
    with pytest.raises(InputError, match="is damaged, or was replaced"):
        at.models.load_run("teacher")


def test_weights_of_earlier_versions_have_no_checksum(teacher: Run) -> None:
    card = json.loads(Path("teacher/model.json").read_text())
    assert len(card.pop("weights_sha256")) == 64
    Path("teacher/model.json").write_text(json.dumps(card))
    assert at.models.load_run("teacher").card is not None


def test_weights_under_another_name_may_be_others(teacher: Run) -> None:
    flip(WEIGHTS, -1)
    WEIGHTS.rename("changed.safetensors")
    assert at.models.load("wrn-10-1@changed.safetensors", 3, trained=True).card is None


@pytest.mark.parametrize("shard", [0, -1])
def test_a_flipped_bit_in_any_shard_is_refused_before_training(
    shard: int, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in one that would be read in the last epoch only."""
    settings = {"teacher": "teacher", "student": "wrn-10-1", "cache": "targets", **TINY}
    whole = at.distill(out="whole", **settings)
    path = sorted(Path("targets").glob("*.rows"))[shard]
    flip(path, 1000)
    with pytest.raises(InputError, match=rf"{path}: its checksum is wrong; delete such a file"):
        at.distill(out="run", **settings)
    assert not Path("run").exists()
    path.unlink()
    again = at.distill(out="run", **settings)
    assert [row.terms for row in again.metrics] == [row.terms for row in whole.metrics]


def test_a_checked_shard_is_not_read_twice(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    at.distill(teacher="teacher", student="wrn-10-1", cache="targets", out="a", **TINY)
    read: list[object] = []
    original = TargetCache._fault
    monkeypatch.setattr(
        TargetCache, "_fault", lambda self, shard: read.append(shard) or original(self, shard)
    )
    at.distill(teacher="teacher", student="wrn-10-1", cache="targets", out="b", **TINY)
    assert sorted(read) == [(0, 0), (1, 0)]


@pytest.mark.slow
def test_several_processes_check_their_shares_and_all_end(tmp_path: Path) -> None:
    """The damaged shard is in the share of the second process."""
    settings = ["--student=wrn-10-1", "--teacher=teacher", "--cache=targets", *TINY_FLAGS]
    trained = run(tmp_path, "train", "--model=wrn-10-1", "--out=teacher", *TINY_FLAGS)
    assert trained.returncode == 0, trained.stderr
    done = run(tmp_path, "distill", *settings, "--out=whole", processes=2)
    assert done.returncode == 0, done.stderr
    path = sorted((tmp_path / "targets").glob("*.rows"))[1]
    flip(path, 1000)
    done = run(tmp_path, "distill", *settings, "--out=run", processes=2)
    assert done.returncode != 0
    assert f"targets/{path.name}: its checksum is wrong; delete such a file" in done.stderr
    assert not (tmp_path / "run").exists()
