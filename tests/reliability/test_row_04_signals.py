"""Rows 4 and 28: signals, in one process."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from reliability.killing import SLOW_STEPS, TINY, final_state, run, start, wait_until

pytestmark = pytest.mark.slow

SLOW = SLOW_STEPS.format(seconds=0.15)

TRAIN = ["train", "--model=wrn-10-1", "--out=run", *TINY]


def begun(folder: Path) -> bool:
    return (folder / "run/config.yaml").is_file()


def training(folder: Path) -> subprocess.Popen[str]:
    """Start a run; return when it trains."""
    process = start(folder, *TRAIN, before=SLOW)
    wait_until(lambda: "training" in (folder / "output.txt").read_text() and begun(folder))
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_within_a_step_and_the_run_resumes_exactly(
    tmp_path: Path, name: str
) -> None:
    process = training(tmp_path)
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    output = (tmp_path / "output.txt").read_text()
    last = output.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"attention-transfer: stopped by {name} after step \d of epoch \d of 3; resume the run: "
        "attention-transfer resume run",
        last,
    )
    assert "Traceback" not in output
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    resumed = run(tmp_path, "resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    if name == "SIGTERM":
        whole = run(tmp_path, *TRAIN[:2], "--out=whole", *TINY)
        assert whole.returncode == 0, whole.stderr
        assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_a_second_signal_ends_the_process_at_once_and_without_a_word(tmp_path: Path) -> None:
    stuck = """
    import time
    from attention_transfer.training.train_step import TrainStep
    TrainStep.step = lambda *_: time.sleep(1000)
    """
    process = start(tmp_path, *TRAIN, before=stuck)
    wait_until(lambda: "training" in (tmp_path / "output.txt").read_text() and begun(tmp_path))
    before = (tmp_path / "output.txt").read_text()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # it waits for the step's end
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    assert (tmp_path / "output.txt").read_text() == before


def test_signals_that_a_process_was_started_to_ignore_stay_ignored(tmp_path: Path) -> None:
    ignoring = SLOW + "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = start(tmp_path, *TRAIN, before=ignoring)
    wait_until(lambda: "training" in (tmp_path / "output.txt").read_text() and begun(tmp_path))
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
