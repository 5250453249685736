"""A dry run: what a run would do and take, and nothing that is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from attention_transfer.cli import main
from attention_transfer.data import DataSet
from conftest import small_data

QUICK = "--epochs 4 --batch-size 8 --precision fp32 --lr 0.01"
TRAIN = f"train --model wrn-10-1 --data test_dry_run:photos {QUICK}"
DISTILL = f"distill --teacher wrn-10-2@random --student wrn-10-1 --data test_dry_run:photos {QUICK}"


def photos() -> DataSet:
    return small_data()


def planned(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main([*command.split(), "--dry-run", "--json"]) == 0
    assert sorted(Path().rglob("*")) == before
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_plan_has_networks_pairs_steps_time_and_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(f"{DISTILL} --beta 500", capsys)
    assert [(one["role"], one["name"]) for one in plan["networks"]] == [
        ("student", "wrn-10-1"),
        ("teacher", "wrn-10-2"),
    ]
    assert all(one["parameters"] > 0 and one["flops"] > 0 for one in plan["networks"])
    pair = plan["pairs"][-1]
    assert (pair["student"], pair["teacher"]) == ("group3", "group3")
    height, width = pair["student_shape"][1:]
    assert pair["effective_weight"] == pytest.approx(500 / (height * width))
    assert plan["images"] == {"train": 48, "validation": 6, "test": 6}
    assert plan["steps"] == 4 * 6
    assert plan["seconds_training"] == pytest.approx(24 * plan["seconds_a_step"])
    parts = ("training", "evaluating", "building_cache")
    assert plan["seconds"] == pytest.approx(sum(plan[f"seconds_{part}"] for part in parts))
    assert plan["peak_megabytes"] > 100
    assert plan["cache"] is None
    assert 0 <= plan["teacher_validation_error"] <= 100


def test_the_cache_is_sized_and_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"{DISTILL} --cache targets --kd-alpha 0.9"
    cache = planned(command, capsys)["cache"]
    assert (cache["folder"], cache["views"]) == ("targets", 4)
    assert cache["missing_bytes"] == cache["bytes"] > 0
    assert main([*command.split(), "--out", "run", "--no-report", "--probes", "0"]) == 0
    rows = sum(path.stat().st_size - 32 for path in Path("targets").glob("*.rows"))
    assert rows == cache["bytes"]
    plan = planned(command, capsys)
    assert plan["cache"]["missing_bytes"] == plan["seconds_building_cache"] == 0


def test_people_get_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN.split(), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "wrn-10-1" in out
    assert "24 steps take about 0:00:" in out
    assert "MB of memory" in out
    assert out.endswith("a dry run: nothing was written\n")
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{TRAIN} --out taken", "taken exists and is not an empty folder"),
        (f"{DISTILL} --pairs a:b", "a"),
        ("train --model wrn-10-1 --data cifar10:none --download", "a dry run downloads no data"),
        ("train --dry-run", "model is missing"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    command: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert main([*command.split(), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(map(str, Path().rglob("*"))) == ["taken", "taken/file"]


def test_the_next_run_is_as_without_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--no-report", "--probes", "0"]
    assert main([*DISTILL.split(), *more, "--out", "one"]) == 0
    planned(DISTILL, capsys)
    assert main([*DISTILL.split(), *more, "--out", "other"]) == 0
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in ("one", "other")]
    assert weights[0] == weights[1]
