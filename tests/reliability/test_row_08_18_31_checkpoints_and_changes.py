"""Rows 8, 17, 18 and 31: the order and content of checkpoints, and the record of what changed."""

import errno
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import batch_bounds
from attention_transfer.errors import InputError
from attention_transfer.runs import Run, checkpoints
from attention_transfer.runs.checkpoints import load_last_checkpoint
from attention_transfer.training import run_state, train_step
from attention_transfer.training.train_step import NotFiniteError
from conftest import SMALL, CrashAfter, CrashError, Listening

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "epochs": 2, "probes": 0, "batch_size": 8, "checkpoint_steps": 1}
"""Two epochs of six steps, with a checkpoint after each."""


def interrupted(steps: int, out: str = "run", **settings: Any) -> Path:
    """Return the checkpoints folder of a run that ended after some steps."""
    with pytest.raises(CrashError):
        at.train("wrn-10-1", out=out, progress=CrashAfter(steps), **{**TINY, **settings})
    return Path(out) / "checkpoints"


def edited(**settings: Any) -> None:
    path = Path("run/config.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))


def last(folder: Path) -> checkpoints.Checkpoint:
    checkpoint, damaged = load_last_checkpoint(folder)
    assert checkpoint is not None
    assert not damaged
    return checkpoint


def test_the_newest_checkpoints_are_kept_where_a_change_moves_the_step_back() -> None:
    """Four steps of 4 images are two of 8."""
    folder = interrupted(9, batch_size=4)
    assert last(folder).step == 9
    edited(batch_size=8)
    told = Listening()
    crash = CrashAfter(1)
    crash.write_line = told.write_line  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        at.resume("run", allow_changes=True, progress=crash)
    assert "resumed after step 5 of epoch 1 of 2" in told.lines
    assert any("4 images of epoch 1 are left out" in line for line in told.lines)
    assert last(folder).step == 6
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(CrashError):
        at.resume("run", progress=CrashAfter(1))  # which is no change any more
    assert (last(folder).epoch, last(folder).step) == (1, 1)
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_checkpoint_keeps_no_place() -> None:
    folder = interrupted(4)
    newest = max(folder.iterdir())
    (newest / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CrashError):
        at.resume("run", progress=CrashAfter(1))
    assert not any(b"damaged" in path.read_bytes() for path in folder.glob("*/state.pt"))
    assert last(folder).step == 4
    assert len(list(folder.iterdir())) == 2


def test_a_checkpoint_of_the_same_step_stays_until_the_new_one_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = interrupted(2)
    names = [f"epoch-0000-step-000000{step}" for step in (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    removed: list[Path] = []
    remove = checkpoints.shutil.rmtree

    def watched(path: Path, **settings: Any) -> None:
        removed.append(Path(path))
        assert last(folder).step == 2
        remove(path, **settings)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", watched)
    state = last(folder)
    number = checkpoints.save_checkpoint(folder, state, after=state.number)
    assert number == last(folder).number == state.number + 1
    assert removed


Change = Callable[[dict[str, Any]], Any]

WRONG: dict[str, Change] = {
    "identity": lambda state: state.update(identity=["lr"]),
    "identity value": lambda state: state["identity"].update({"setting lr": 5}),
    "no identity": lambda state: state.update(identity={}),
    "seconds": lambda state: state.update(seconds="long"),
    "endless seconds": lambda state: state.update(seconds=float("nan")),
    "steps per epoch": lambda state: state.update(steps_per_epoch=0),
    "other steps per epoch": lambda state: state.update(steps_per_epoch=900),
    "step": lambda state: state.update(step=900),
    "negative step": lambda state: state.update(step=-1),
    "text for a step": lambda state: state.update(step="4"),
    "epoch": lambda state: state.update(epoch=99),
    "momentum": lambda state: next(iter(state["optimizer"]["state"].values())).update(
        momentum_buffer=torch.zeros(2, 3)
    ),
    "no momentum": lambda state: next(iter(state["optimizer"]["state"].values())).update(
        momentum_buffer="fast"
    ),
    "optimizer": lambda state: state.update(optimizer=5),
    "weights": lambda state: state["transfer"].popitem(),
    "scaler": lambda state: state.update(scaler=3),
    "metrics": lambda state: state.update(metrics=[]),
    "rows": lambda state: state["metrics"].append(state["metrics"][0]),
    "row": lambda state: state["metrics"][0].update(lr="fast"),
    "optimizer's name": lambda state: state.update(optimizer_name=3),
    "groups": lambda state: state["optimizer_parameters"][0].pop(),
    "average": lambda state: state.update(average={"updates": -1, "values": {}}),
    "meters": lambda state: state.update(meters=[]),
    "one meter": lambda state: state["meters"][0].update(wrong=torch.zeros(5)),
    "empty meter": lambda state: state["meters"][0].update(images=0),
    "processes": lambda state: state.update(processes=3),
    "huge batch": lambda state: state.update(batch_size=10**9),
    "changes": lambda state: state.update(changes=[{"name": 3}]),
    "nothing": lambda state: state.clear(),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that writes a run stopped after step 2 of epoch 2, and returns its folder
    of checkpoints.
    """
    home: dict[str, dict[Path, bytes]] = {}

    def write() -> Path:
        if not home:
            interrupted(8)
            home["files"] = {
                path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()
            }
        for path, content in home["files"].items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Path("run/checkpoints")

    return write


def seal(checkpoint: Path, change: Change) -> None:
    """Change a checkpoint's state, and write the checksum that belongs to it."""
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    change(state)
    file = io.BytesIO()
    torch.save(state, file)
    (checkpoint / "state.pt").write_bytes(file.getvalue())
    (checkpoint / "sha256").write_text(hashlib.sha256(file.getvalue()).hexdigest())


@pytest.mark.parametrize("flags", [[], ["--allow-changes"]], ids=["plain", "changes"])
@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_is_wrong_ends_in_one_line(
    name: str,
    flags: list[str],
    stopped: Callable[[], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for checkpoint in stopped().iterdir():
        seal(checkpoint, WRONG[name])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["resume", "run", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "start a new run" in error
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["epoch-0099-step-0000002", "epoch-0001-step-0000900"])
def test_a_renamed_checkpoint_is_not_used(name: str, stopped: Callable[[], Path]) -> None:
    folder = stopped()
    max(folder.iterdir()).rename(folder / name)
    checkpoint, damaged = load_last_checkpoint(folder)
    assert checkpoint is not None
    assert (checkpoint.epoch, checkpoint.step) == (1, 1)
    assert name in damaged[0]


@pytest.mark.parametrize("error", [MemoryError(), errno.EMFILE, errno.EACCES, "torch"])
def test_a_checkpoint_that_the_machine_cannot_read_is_not_taken_for_damaged(
    error: Any,
    stopped: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped()
    if isinstance(error, int):
        error = OSError(error, "the machine's fault")
    elif error == "torch":
        error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints.torch, "load", fail)
    capsys.readouterr()
    assert main(["resume", "run"]) == (2 if isinstance(error, OSError) else 1)
    message = capsys.readouterr().err
    assert "step-0000002" in message
    assert "damaged" not in message


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_no_new_run(
    stopped: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    listed = checkpoints.os.listdir

    def refused(path: Any) -> list[str]:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list(listed(path))

    monkeypatch.setattr(checkpoints.os, "listdir", refused)
    with pytest.raises(InputError, match="cannot read run/checkpoints: Permission denied"):
        at.resume("run")


def test_fewer_epochs_than_were_trained_are_refused(
    stopped: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped()
    edited(epochs=1)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert main(["resume", "run", "--allow-changes"]) == 2
    assert "has trained 1 epochs and 2 steps of the next, more than the 1" in (
        capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in before} == before
    edited(epochs=2)
    assert at.resume("run").record.changes == []


def test_the_record_lists_the_changes_and_counts_what_was_trained(
    stopped: Callable[[], Path],
) -> None:
    stopped()
    edited(lr=0.01)
    with pytest.raises(CrashError):
        at.resume("run", allow_changes=True, progress=CrashAfter(2))
    edited(batch_size=16, epochs=3)
    run = at.resume("run", allow_changes=True)
    changes = json.loads((run.folder / "record.json").read_text())["changes"]
    assert [tuple(change.values()) for change in changes] == [
        ("setting lr", "0.05", "0.01", 1, 2),
        ("setting epochs", "2", "3", 1, 4),
        ("setting batch_size", "8", "16", 1, 4),
    ]
    assert [row.step for row in run.metrics] == [6, 11, 14]
    images = run.record.images_per_second * run.record.seconds
    assert images == pytest.approx(3 * 48)
    from attention_transfer.report.groups import group_runs
    from attention_transfer.report.warnings import run_warnings

    lines = list(run_warnings(group_runs([run])))
    assert "run: setting lr was 0.05 until step 2 of epoch 2, then 0.01" in lines


def test_steps_go_on_where_the_last_batch_ended() -> None:
    """For all numbers of processes: each image once, but for those that are told."""
    for images in (42, 41, 43, 60, 7):
        for before in (1, 2, 3, 4):
            for now in (1, 2, 3, 4):
                _check_steps(images, 10, before, now)


def _check_steps(images: int, batch_size: int, before: int, now: int) -> None:
    old, new = (batch_bounds(images, batch_size, count) for count in (before, now))
    for step in range(len(old) + 1):
        state = run_state.RunState.model_construct(
            step=step, training_images=images, batch_size=batch_size, processes=before
        )
        resumed, passed = run_state.resumed_step(state, new)
        done = [sample for start, end in old[:step] for sample in range(start, end)]
        rest = [sample for start, end in new[resumed:] for sample in range(start, end)]
        assert passed >= 0
        left = range(len(done), len(done) + passed)
        assert [*done, *left, *rest] == list(range(images))
        assert passed < now  # fewer than processes: no step of all of them
        if before == now:
            assert (resumed, passed) == (step, 0)


def test_a_refused_resume_builds_no_cache(teacher: Run) -> None:
    settings = {**TINY, "teacher": str(teacher.folder), "student": "wrn-10-1", "cache": "targets"}
    with pytest.raises(CrashError):
        at.distill(out="run", progress=CrashAfter(3), **settings)
    edited(cache="another", lr=0.01)
    with pytest.raises(InputError, match="began with"):
        at.resume("run")
    assert not Path("another").exists()
    for checkpoint in Path("run/checkpoints").iterdir():
        seal(checkpoint, lambda state: state["transfer"].pop("student.stem.weight"))
    with pytest.raises(InputError, match="does not fit"):
        at.resume("run", allow_changes=True)
    assert not Path("another").exists()


class Steep(at.Term):
    """A finite loss whose gradient is infinite."""

    name = "steep"
    needs_logits = True

    def forward(self, inputs: at.TermInputs) -> Tensor:
        return (inputs.logits - inputs.logits.detach()).sqrt().sum()


def test_a_gradient_that_is_never_finite_in_fp16_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaler = torch.amp.GradScaler

    def enabled(device: str, **_: Any) -> torch.amp.GradScaler:
        return scaler(device, init_scale=4 * train_step.LOWEST_SCALE)

    monkeypatch.setattr(train_step.torch.amp, "GradScaler", enabled)
    with pytest.raises(NotFiniteError, match=r"gradient, in fp16 .* not finite in epoch 1, step 4"):
        at.train("wrn-10-1", out="run", terms=[Steep()], **TINY)
    assert not Path("run/record.json").exists()
    resumed = at.resume("run", terms=[at.CrossEntropy()], allow_changes=True)
    assert resumed.is_finished
