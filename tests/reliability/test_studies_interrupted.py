"""Studies in several processes; killed, interrupted by a signal, and resumed."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attention_transfer.runs import Run
from tiny_study import STUDY, command, start_study, write_study

pytestmark = pytest.mark.slow


def test_a_study_in_two_processes_has_logs_and_one_cache(tmp_path: Path) -> None:
    start_study(tmp_path, "--processes", "2")
    document = json.loads((tmp_path / "out/study.json").read_text())
    assert (document["runs_planned"], document["runs_finished"]) == (5, 5)
    assert len(list((tmp_path / "out/logs").iterdir())) == 5
    assert len(list((tmp_path / "out/caches/folder-images").iterdir())) == 1


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_study_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, processes: int) -> None:
    longer = {**STUDY, "settings": {**STUDY["settings"], "epochs": 12, "checkpoint_steps": 5}}
    write_study(tmp_path, longer)
    begun = command("study", "tiny.yaml", "--out", "out", "--no-measure", "--seeds", "1")
    process = subprocess.Popen(
        [*begun, "--processes", str(processes)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    runs = tmp_path / "out/runs/folder-images/small-from-big"
    wait_for(lambda: any(runs.glob("*/seed-0/checkpoints/*-step-*")))
    process.kill()
    process.wait()
    time.sleep(2)  # the runs of a killed study are told to end by Linux
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(finished) < 3, "it was killed too late"
    start_study(tmp_path, "--seeds", "1", value=longer)
    assert json.loads((tmp_path / "out/study.json").read_text())["complete"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_lets_the_runs_save_and_names_the_line_that_resumes(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    longer = {**STUDY, "settings": {**STUDY["settings"], "epochs": 2000}}
    write_study(tmp_path, longer)
    arguments = ["study", "tiny.yaml", "--out", "out", "--no-measure", "--seeds", "1"]
    process = subprocess.Popen(
        command(*arguments, "--processes", str(processes)),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "out/runs/folder-images/small-from-big/alone/seed-0/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and os.path.getsize(metrics) > 0)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    line = stderr.strip().splitlines()[-1]
    assert f"stopped by {number.name}; resume the study: attention-transfer study" in line
    words = shlex.split(line.partition("resume the study: ")[2])
    assert words[:3] == ["attention-transfer", "study", "tiny.yaml"]
    assert ("--processes" in words) == (processes > 1)
    assert any((metrics.parent / "checkpoints").iterdir())
    assert not (metrics.parent / ".lock").exists()


def test_runs_in_two_processes_fail_or_diverge_and_the_others_go_on(tmp_path: Path) -> None:
    arms = {
        "alone": {"teacher": "none"},
        "broken": {"pairs": "nothing:group1"},
        "diverges": {"teacher": "none", "lr": 1e30},
        "KD": {"attention": "none", "kd_alpha": 0.9},  # before AT, which needs more of the teacher
        "AT": {},
    }
    value = {**STUDY, "arms": arms, "seeds": "1", "paper": {}}
    done = start_study(tmp_path, "--processes", "2", value=value, code=1)
    assert "/broken/seed-0 failed: attention-transfer: " in done.stdout
    assert "/diverges/seed-0 diverged: " in done.stdout
    document = json.loads((tmp_path / "out/study.json").read_text())
    counts = [document[f"runs_{kind}"] for kind in ("planned", "finished", "diverged")]
    assert counts == [6, 4, 1]
    assert Run(tmp_path / "out/runs/folder-images/small-from-big/at/seed-0").is_finished
