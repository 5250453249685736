"""Row 37: frozen processes and machines, at any time of a command; none is waited for forever."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from reliability.killing import (
    SLOW_STEPS,
    TINY,
    alive,
    descendants,
    kill_all,
    run,
    start,
    wait_until,
)
from reliability.test_row_17_evaluation_by_processes import COUNTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TRAIN = ["train", "--model=wrn-10-1", "--out=run", *TINY]

DISTILL = [
    "distill",
    "--teacher=wrn-10-1@random",
    "--student=wrn-10-1",
    "--cache=targets",
    "--out=run",
    *TINY,
]

AT_WORK = """
import os, time
from {module} import {name} as place
def working(*arguments, **settings):
    open(f"at-work-{{os.environ['RANK']}}", "w").write(str(os.getpid()))
    time.sleep(1000)
{patched} = working
"""
"""Code to run before a command: a part of it lasts for ever."""

BUILDING = AT_WORK.format(
    module="attention_transfer.cache", name="TargetSource", patched="place.build"
)
SETTING_UP = AT_WORK.format(
    module="attention_transfer.training", name="launch", patched="place.set_up_run"
)
EVALUATING = COUNTED + AT_WORK.format(
    module="attention_transfer.training",
    name="shared_evaluation",
    patched="shared_evaluation.predict",
)


def working_pids(folder: Path) -> list[int]:
    paths = [folder / "at-work-0", folder / "at-work-1"]
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths), 120)
    return [int(path.read_text()) for path in paths]


@pytest.mark.parametrize(
    ("arguments", "before"),
    [(DISTILL, SETTING_UP), (DISTILL, BUILDING), (["evaluate", "model"], EVALUATING)],
    ids=["setting up", "building targets", "evaluating"],
)
@pytest.mark.parametrize("frozen", ["process 1", "killed agent"])
def test_a_frozen_process_is_named_whatever_is_done(
    tmp_path: Path, arguments: list[str], before: str, frozen: str
) -> None:
    if arguments[0] == "evaluate":
        trained = run(tmp_path, "train", "--model=wrn-10-1", *TINY, "--out=model")
        assert trained.returncode == 0, trained.stderr
    process = start(tmp_path, *arguments, before=before, processes=2)
    try:
        pids = working_pids(tmp_path)
        if frozen == "process 1":
            os.kill(pids[1], signal.SIGSTOP)
            expected = r"process 1 \(process \d+ on .*\) has given no sign of life for 15 s"
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            expected = "the agent that started this process has ended"
        wait_until(lambda: not alive(pids), 90)
        assert re.search(expected, (tmp_path / "output.txt").read_text())
    finally:
        kill_all(process)


def test_processes_end_when_the_machine_of_their_store_freezes(tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN, before=SLOW_STEPS.format(seconds=2), processes=2)
    output = tmp_path / "output.txt"
    try:
        wait_until(lambda: "training," in output.read_text(), 120)
        workers = descendants(process.pid)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not alive(workers), 60)
        assert re.search(r"the store .* has given no answer for 15 s", output.read_text())
    finally:
        kill_all(process)


def test_a_run_that_was_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *TRAIN, before=SLOW_STEPS.format(seconds=0.3), processes=2)
    output = tmp_path / "output.txt"
    try:
        wait_until(lambda: "training," in output.read_text(), 120)
        everyone = [process.pid, *descendants(process.pid)]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(20)
        for pid in reversed(everyone):
            os.kill(pid, signal.SIGCONT)
        assert process.wait(120) == 0, output.read_text()
    finally:
        kill_all(process)
