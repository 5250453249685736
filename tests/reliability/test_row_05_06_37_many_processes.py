"""Rows 5, 6 and 37: two processes of torchrun; signals, an error, a killed agent."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reliability.killing import (
    TINY,
    alive,
    descendants,
    final_state,
    run,
    start,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = ["train", "--model=wrn-10-1", "--out=run", *TINY]

SLOW = """
import os, time
from attention_transfer.training.train_step import TrainStep
original = TrainStep.step
def slow(self, *arguments):
    time.sleep(0.3)
    return original(self, *arguments)
TrainStep.step = slow
open(f"pid-{os.environ['RANK']}-0", "w").write(str(os.getpid()))
"""


def pid_of(folder: Path, rank: int, restart: int = 0) -> int:
    return int((folder / f"pid-{rank}-{restart}").read_text())


def training(folder: Path, before: str = SLOW) -> subprocess.Popen[str]:
    process = start(folder, *TRAIN, before=before, processes=2)
    output = folder / "output.txt"
    wait_until(lambda: "training," in output.read_text() or process.poll() is not None)
    assert process.poll() is None, output.read_text()
    time.sleep(1)
    return process


def ended(process: subprocess.Popen[str], everyone: list[int], seconds: float) -> int:
    """Wait until a job has ended, with all its processes, and return its exit code."""
    code = process.wait(seconds)
    wait_until(lambda: not alive(everyone), 15)
    return code


@pytest.mark.parametrize("target", ["process 0", "process 1", "agent"])
def test_all_processes_stop_at_the_same_step(tmp_path: Path, target: str) -> None:
    process = training(tmp_path)
    everyone = [process.pid, *descendants(process.pid)]
    pid = process.pid if target == "agent" else pid_of(tmp_path, int(target[-1]))
    os.kill(pid, signal.SIGTERM)
    assert ended(process, everyone, 30) != 0
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    output = (tmp_path / "output.txt").read_text()
    stops = re.findall(r"stopped by SIGTERM after (step \d+ of epoch \d+)", output)
    assert len(set(stops)) == 1, output
    resumed = run(tmp_path, "resume", "run", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    whole = run(tmp_path, "train", "--model=wrn-10-1", "--out=whole", *TINY, processes=2)
    assert whole.returncode == 0, whole.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def _raises(step: str) -> str:
    return f"""
    import os, time
    from attention_transfer.training.train_step import TrainStep
    original, left = TrainStep._step, [4]
    def failing(self, *arguments):
        left[0] -= 1
        if left[0] == 0 and os.environ["RANK"] == "1":
            {step}
        return original(self, *arguments)
    TrainStep._step = failing
    open(f"pid-{{os.environ['RANK']}}-0", "w").write(str(os.getpid()))
    """


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("raise ValueError('crash')", "crash"),
    ],
)
def test_a_process_that_fails_ends_the_job_and_is_named(
    tmp_path: Path, step: str, expected: str
) -> None:
    process = start(tmp_path, *TRAIN, "--timeout=5", before=_raises(step), processes=2)
    wait_until(lambda: (tmp_path / "pid-0-0").exists() and (tmp_path / "pid-1-0").exists())
    everyone = [process.pid, *descendants(process.pid)]
    assert ended(process, everyone, 90) != 0
    output = (tmp_path / "output.txt").read_text()
    assert re.search(expected, output), output


def test_no_process_outlives_a_killed_agent_and_the_state_is_saved(tmp_path: Path) -> None:
    process = training(tmp_path)
    everyone = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(everyone), 30)
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
