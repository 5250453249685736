"""What a command waits for: a line at once, then what takes long; nothing where nothing does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from attention_transfer.cli import COMMANDS, main
from attention_transfer.data import DataSet
from attention_transfer.waiting import announcing, waiting_for
from conftest import small_data

SLOW = {
    "demo": "demo",
    "train": "train --model wrn-10-1",
    "distill": "distill --teacher wrn-10-1@random --student wrn-10-1",
    "resume": "resume run",
    "evaluate": "evaluate wrn-10-1@random",
    "predict": "predict wrn-10-1@random photos",
    "export": "export run",
    "points": "points wrn-10-1",
    "maps": "maps wrn-10-1@random --images photos",
    "cache": "cache info caches/teacher",
    "report": "report run",
    "study": "study do-no-harm --plan",
    "benchmark": "benchmark step",
    "doctor": "doctor --json",
}
"""A command line of each command that imports something large."""


def started(arguments: str, packages: Path) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(packages), *sys.path])
    command = [sys.executable, "-m", "attention_transfer", *arguments.split()]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.fixture
def slow_packages(tmp_path: Path) -> Path:
    """A folder of packages whose import takes a minute."""
    for name in ("torch", "jinja2"):
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(60)\n")
    return tmp_path


@pytest.mark.parametrize("name", SLOW)
def test_a_line_is_there_before_anything_large_is_imported(name: str, slow_packages: Path) -> None:
    began = time.monotonic()
    with started(SLOW[name], slow_packages) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        seconds = time.monotonic() - began
        process.kill()
    assert line.startswith("attention-transfer: loading ")
    assert seconds < 10  # 0.2 on an idle machine, and never the minute


def test_every_command_that_imports_something_large_is_among_these() -> None:
    assert set(COMMANDS) - set(SLOW) <= {"completion"}


@pytest.mark.parametrize("arguments", ["--help", "distill --help", "distill --epochs no", "x", ""])
def test_what_ends_at_once_says_no_more_than_it_must(arguments: str, slow_packages: Path) -> None:
    with started(arguments, slow_packages) as process:
        _, err = process.communicate(timeout=30)
    assert "loading" not in err
    assert err.count("\n") == (1 if process.returncode else 0)


def slow_data() -> DataSet:
    time.sleep(1.3)
    return small_data()


def slow_network(num_classes: int = 3) -> nn.Module:
    time.sleep(1.3)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, num_classes))


def test_slow_steps_of_the_set_up_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train --model test_waiting:slow_network --data test_waiting:slow_data --epochs 1"
    command += " --batch-size 8 --precision fp32 --out run --no-report --json"
    told: list[str] = []
    with announcing(told.append):
        assert main(command.split()) == 0
    assert told[:2] == [
        "reading the data test_waiting:slow_data",
        "loading the network test_waiting:slow_network",
    ]


def test_quick_steps_and_python_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    with announcing(told.append), waiting_for("something quick"):
        pass
    with waiting_for("something slow that nobody listens for"):
        time.sleep(1.1)
    assert not told
    assert capsys.readouterr() == ("", "")


def test_a_wait_that_fails_is_over() -> None:
    told: list[str] = []
    with announcing(told.append):
        with pytest.raises(ValueError, match="no"), waiting_for("something"):
            raise ValueError("no")
        time.sleep(1.2)
    assert not told
