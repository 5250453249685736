"""Rows 8, 18, 31 and 34: damaged files, and what changed between stop and resume."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

import attention_transfer as at
from attention_transfer import network_inputs
from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.errors import InputError
from attention_transfer.files import append_line
from attention_transfer.runs import Run
from attention_transfer.training.train_step import TrainStep
from conftest import SMALL, CrashAfter, CrashError, Listening, small_data
from reliability.killing import final_state

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "epochs": 2, "probes": 0, "batch_size": 16}


def interrupted(out: str, steps: int = 4, **settings: Any) -> Path:
    """Return the folder of a run that ended after some steps."""
    with pytest.raises(CrashError):
        at.train("wrn-10-1", out=out, progress=CrashAfter(steps), **{**TINY, **settings})
    return Path(out)


CHANGES: dict[str, Any] = {
    "lr": 0.01,
    "momentum": 0.5,
    "weight_decay": 0.01,
    "batch_size": 12,
    "seed": 1,
    "data_seed": 1,
    "epochs": 3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_edited_configuration_is_shown_and_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted("a run")
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    before = values[name]
    path.write_text(yaml.safe_dump({**values, name: CHANGES[name]}))
    files = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert main(["resume", "a run"]) == 2
    error = capsys.readouterr().err
    assert f"began with setting {name} {before}, and is resumed with {CHANGES[name]}" in error
    assert "attention-transfer resume 'a run' --allow-changes" in error
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == files


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "lr", "batch_size", "epochs"])
def test_an_allowed_change_is_used_and_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted("run")
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, name: CHANGES[name]}))
    used: list[tuple[int, dict[str, Any]]] = []
    original = TrainStep.step

    def step(self: TrainStep, batch: Any, *arguments: Any) -> Any:
        used.append((batch.total, dict(self.optimizer.param_groups[0])))
        return original(self, batch, *arguments)

    monkeypatch.setattr(TrainStep, "step", step)
    run = at.resume("run", allow_changes=True)
    assert getattr(run.record.config, name) == CHANGES[name]
    images, group = used[-1]
    if name in ("momentum", "weight_decay"):
        assert group[name] == CHANGES[name]
    if name == "batch_size":
        assert images == CHANGES[name]
    if name == "epochs":
        assert len(run.metrics) == CHANGES[name]


def test_another_teacher_under_the_same_path_is_noticed(teacher: Run) -> None:
    settings = {**TINY, "teacher": str(teacher.folder), "student": "wrn-10-1"}
    with pytest.raises(CrashError):
        at.distill(out="run", progress=CrashAfter(2), **settings)
    weights = teacher.folder / "model.safetensors"
    kept = weights.read_bytes()
    other = at.train("wrn-10-1", out="other", **{**TINY, "seed": 5})
    assert load_file(other.folder / "model.safetensors").keys() == load_file(weights).keys()
    for name in ("model.safetensors", "model.json"):
        shutil.copy(other.folder / name, teacher.folder / name)
    with pytest.raises(InputError, match="began with teacher weights"):
        at.resume("run")
    weights.write_bytes(kept)


def test_other_images_in_memory_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted("run")
    changed = small_data()
    changed.test.images[4, 0, 0, 0] ^= 1
    monkeypatch.setattr(network_inputs, "load_data", lambda *_, **__: changed)
    with pytest.raises(InputError, match="began with test images"):
        at.resume("run")


def test_a_file_of_images_that_was_swapped_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_inputs, "load_data", load_data)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(6):
                seed = np.random.default_rng([number, label == "cat", split == "val"])
                pixels = seed.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.bmp")
    settings = {**TINY, "data": f"folder:{tmp_path / 'photos'}", "image_size": 16, "workers": 0}
    with pytest.raises(CrashError):
        at.train("wrn-10-1", out="run", progress=CrashAfter(1), **{**settings, "batch_size": 4})
    path = tmp_path / "photos/train/cat/3.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255  # of the same size
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"began with (training|validation) images"):
        at.resume("run")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_is_named(damage: Any) -> None:
    expected = final_state(at.train("wrn-10-1", out="whole", **TINY).folder)
    folder = interrupted("run", steps=5, checkpoint_steps=2)
    newest = max((folder / "checkpoints").iterdir())
    damage(newest / "state.pt")
    told = Listening()
    assert final_state(at.resume("run", progress=told).folder) == expected
    assert any(
        f"{newest} is damaged" in line and "the one before is used" in line for line in told.lines
    )


def test_half_a_line_of_metrics_does_not_matter() -> None:
    expected = final_state(at.train("wrn-10-1", out="whole", **TINY).folder)
    for name, harm in {
        "half": lambda path: path.write_text(path.read_text()[:-30]),
        "more": lambda path: append_line(path, '{"epoch": 2, "st'),
        "none": lambda path: path.unlink(),
        "other": lambda path: path.write_text("[" * 10_000),
    }.items():
        folder = interrupted(name)
        harm(folder / "metrics.jsonl")
        assert final_state(at.resume(name).folder) == expected


def test_a_run_without_a_checkpoint_begins_again() -> None:
    expected = final_state(at.train("wrn-10-1", out="whole", **TINY).folder)
    folder = interrupted("run", steps=1)
    shutil.rmtree(folder / "checkpoints")
    told = Listening()
    assert final_state(at.resume("run", progress=told).folder) == expected
    assert "there is no checkpoint yet: the run begins again" in told.lines


def test_resume_or_start(capsys: pytest.CaptureFixture[str]) -> None:
    """It starts, goes on, returns at once, and refuses another run's settings."""
    settings = {**TINY, "out": "queued", "resume_or_start": True}
    with pytest.raises(CrashError):
        at.train("wrn-10-1", progress=CrashAfter(4), **settings)
    with pytest.raises(InputError, match="began with setting lr"):
        at.train("wrn-10-1", **{**settings, "lr": 0.01})
    run = at.train("wrn-10-1", **settings)
    assert final_state(run.folder) == final_state(at.train("wrn-10-1", out="whole", **TINY).folder)
    written = (run.folder / "record.json").stat().st_mtime_ns
    assert at.train("wrn-10-1", **settings).record == run.record
    assert (run.folder / "record.json").stat().st_mtime_ns == written
    assert main(["train", "--model=wrn-10-1", "--resume-or-start"]) == 2
    assert "needs the run's folder; give --out DIR" in capsys.readouterr().err
