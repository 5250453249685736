"""The demo with one epoch, started from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer.config import DemoConfig
from attention_transfer.errors import InputError
from attention_transfer.experiments.demo import TEACHER_RECIPE, packaged_teacher, run_demo
from attention_transfer.runs import Run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Run the demo once; return its working folder, its stdout and its stderr."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "attention_transfer", "demo", "--epochs", "1", "--json"]
    command += ["--cache", "targets"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_it_prints_one_json_document_with_all_arms(demo: tuple[Path, str, str]) -> None:
    document = json.loads(demo[1])
    assert [arm["name"] for arm in document["arms"]] == ["teacher", "alone", "at", "at+kd"]
    for arm in document["arms"]:
        assert set(arm) == {"name", "test_error", "parameters", "seconds"}
        assert 0 < arm["test_error"] < 100
        assert arm["seconds"] > 0
    assert [arm["parameters"] for arm in document["arms"]] == [691674, 175066, 175066, 175066]
    assert document["arms"][0]["test_error"] < 15
    assert "at: beta 1000 (constant, form code)" in document["settings"]
    assert "at+kd: beta 1000 (linear, form code)" in document["settings"]
    assert "% error" in document["sentence"]


def test_progress_goes_to_stderr_in_plain_lines(demo: tuple[Path, str, str]) -> None:
    assert "epoch 1/1" in demo[2]
    assert "layer pair group1 (16x32x32) <- group1 (32x32x32): effective weight" in demo[2]
    assert "\x1b" not in demo[2]


def test_it_leaves_the_runs_and_a_picture_in_a_new_folder(demo: tuple[Path, str, str]) -> None:
    document = json.loads(demo[1])
    folder = demo[0] / document["folder"]
    assert folder.parent.name == "runs"
    for name in ("alone", "at", "at+kd"):
        assert Run(folder / name).record.final.test_images == 1000
    assert Run(folder / "at").record.cache.seconds_building > 1
    assert Run(folder / "at+kd").record.cache.seconds_building < 1
    with Image.open(demo[0] / document["picture"]) as picture:
        assert picture.width > 1000
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    with np.load(folder / "attention.npz") as maps:
        assert maps["images"].shape == (8, 32, 32, 3)
        assert maps["at/top"].shape == (8, 8, 8)
        assert maps["teacher/low"].shape == (8, 32, 32)


def test_the_packaged_teacher_has_the_recipes_configuration_and_is_small() -> None:
    teacher = Run(packaged_teacher())
    assert (teacher.folder / "model.safetensors").stat().st_size <= 3_000_000
    assert teacher.config.replace(out=None) == TEACHER_RECIPE
    assert teacher.record.config.student == "wrn-16-2"
    assert teacher.load().card is not None


def test_a_cache_that_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "targets").write_text("mine")
    config = DemoConfig(cache=tmp_path / "targets", out=tmp_path / "demo")
    with pytest.raises(InputError, match="cannot be a cache's folder"):
        run_demo(config)
    assert not (tmp_path / "demo").exists()
