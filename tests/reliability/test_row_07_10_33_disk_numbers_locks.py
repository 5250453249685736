"""Rows 7, 9, 10 and 33: a full disk, numbers that are not finite, two processes in a folder."""

import errno
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.runs import Run
from attention_transfer.runs.checkpoints import Checkpoint, load_last_checkpoint, save_checkpoint
from attention_transfer.runs.lock import locked
from conftest import SMALL
from reliability.killing import final_state, need_mounts

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "epochs": 2, "probes": 0, "batch_size": 16, "checkpoint_steps": 1}


class Broken(at.Term):
    """Not a number at one step."""

    name = "broken"
    needs_logits = True

    def __init__(self, at_step: int) -> None:
        super().__init__()
        self._left = at_step

    def forward(self, inputs: at.TermInputs) -> Tensor:
        self._left -= 1
        return inputs.logits.mean() * (float("nan") if self._left == 0 else 0)


@pytest.mark.parametrize("at_step", [1, 4])
def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_images(
    at_step: int, tmp_path: Path
) -> None:
    expected = at.train("wrn-10-1", out="whole", terms=[Broken(-1)], **TINY)
    with pytest.raises(
        TrainingError,
        match=r"the loss \(broken\) is not finite in epoch \d, step \d, with the images "
        r"sample \d+; .* and 8 more.*--lr",
    ):
        at.train("wrn-10-1", out="run", terms=[Broken(at_step)], **TINY)
    checkpoint, _ = load_last_checkpoint(Path("run/checkpoints"))
    assert checkpoint is not None
    assert 3 * checkpoint.epoch + checkpoint.step == at_step - 1
    state = checkpoint.state["transfer"]
    assert all(bool(value.isfinite().all()) for value in state.values())
    resumed = at.resume("run", terms=[Broken(-1)], allow_changes=True)
    assert final_state(resumed.folder) == final_state(expected.folder)


def test_weights_that_explode_leave_a_folder_that_can_be_resumed() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        at.train("wrn-10-1-nobn", out="wild", **{**TINY, "lr": 1e20})
    assert not Path("wild/record.json").exists()
    assert load_last_checkpoint(Path("wild/checkpoints"))[0] is not None


@pytest.mark.parametrize("size", [100, 20_000, 300_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(
    size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of more than so many bytes cannot be written."""
    with pytest.raises(TrainingError):
        at.train("wrn-10-1", out="run", terms=[Broken(4)], **TINY)
    before, _ = load_last_checkpoint(Path("run/checkpoints"))
    assert before is not None
    config = Path("run/config.yaml")
    kept = {
        path: path.read_bytes() for path in Path("run/checkpoints").rglob("*") if path.is_file()
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(
            (TrainingError, InputError),
            match=r"cannot write .*: File too large.*(is intact|make room|make it writable)",
        ):
            at.resume("run", terms=[Broken(-1)], allow_changes=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert config.exists()
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert not list(Path("run").rglob(".*.partial"))
    assert at.resume("run", terms=[Broken(-1)], allow_changes=True).is_finished


def test_a_run_on_a_disk_that_can_only_be_read_is_one_line(tmp_path: Path) -> None:
    need_mounts()
    config = RunConfig.checked({"student": "wrn-10-1", "data": "cluttered-digits"})
    Run.create(tmp_path / "run", config)
    resume = [sys.executable, "-m", "attention_transfer", "resume", "run"]
    only_read = 'mount --bind -o ro run run && mount -o remount,ro,bind run && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", only_read, "sh", *resume],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line == (
        "attention-transfer: cannot write to run: Read-only file system; make it writable, or "
        "choose another --out"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_start_that_fails_removes_what_it_wrote_and_nothing_else(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(tracker: TensorBoardTracker) -> None:
        Path(tracker.logging_dir, "events").mkdir()
        raise error

    Path("run/.git").mkdir(parents=True)
    Path("run/.git/config").write_text("[core]")
    monkeypatch.setattr(TensorBoardTracker, "start", start)
    for folder in ("run", "another"):
        with pytest.raises((InputError, KeyboardInterrupt)):
            at.train("wrn-10-1", out=folder, track="tensorboard", **TINY)
    assert [str(path) for path in Path("run").rglob("*")] == ["run/.git", "run/.git/config"]
    assert not Path("another").exists()


def test_a_checkpoint_that_reads_back_differently_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, Checkpoint(0, 1, {"weights": torch.ones(3)}))
    save_checkpoint(folder, Checkpoint(0, 2, {"weights": torch.ones(3)}))
    from attention_transfer.runs import checkpoints

    monkeypatch.setattr(checkpoints, "_checksum", lambda _: "another")
    with pytest.raises(OSError, match="reads back differently"):
        save_checkpoint(folder, Checkpoint(0, 3, {"weights": torch.ones(3)}))
    monkeypatch.undo()
    found, damaged = load_last_checkpoint(folder)
    assert found is not None
    assert (found.step, damaged) == (2, [])
    assert len(list(folder.iterdir())) == 2


def _hold(folder: str, held: Event, release: Event) -> None:
    with locked(Path(folder)):
        held.set()
        release.wait(60)


def _elsewhere(folder: Path, during: Callable[[], None]) -> None:
    """Do something while another process holds a folder's lock."""
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(folder), held, release))
    other.start()
    try:
        assert held.wait(30)
        during()
    finally:
        release.set()
        other.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_folder_in_which_another_process_trains_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TrainingError):
        at.train("wrn-10-1", out="run", terms=[Broken(4)], **TINY)
    files = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def refused() -> None:
        with pytest.raises(InputError, match=r"process \d+ on .* trains the run in run; wait"):
            at.resume("run", terms=[Broken(-1)])
        assert {path: path.read_bytes() for path in files} == files

    _elsewhere(Path("run"), refused)
    assert at.resume("run", terms=[Broken(-1)], allow_changes=True).is_finished
    assert not Path("run/.lock").exists()

    Path("new").mkdir()
    _elsewhere(Path("new"), lambda: _refuses_to_start())
    assert not Path("new/config.yaml").exists()


def _refuses_to_start() -> None:
    with pytest.raises(InputError, match="trains the run in new"):
        at.train("wrn-10-1", out="new", **TINY)


def test_two_runs_of_one_process_do_not_share_a_folder() -> None:
    folder = Path("run")
    folder.mkdir()
    with (
        locked(folder),
        pytest.raises(InputError, match="this process already trains"),
        locked(folder),
    ):
        pass
    with locked(folder):
        assert os.listdir(folder) == [".lock"]
    assert os.listdir(folder) == []


@pytest.mark.parametrize("out", ["/proc/run", "/dev/null/run", "file/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of these can be made, by no user."""
    Path("file").touch()
    assert main(["train", "--model=wrn-10-1", f"--out={out}"]) == 2
    assert f"cannot write to {out}: " in capsys.readouterr().err


def test_disk_errors_outside_of_checkpoints_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(at.Run, "append_metrics", full)
    with pytest.raises(TrainingError, match=r"cannot write to .*No space left.*resume run"):
        at.train("wrn-10-1", out="run", **TINY)
