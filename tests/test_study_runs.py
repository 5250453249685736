"""Studies that run: in one process and in several, killed, resumed, and with a run that fails."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from attention_transfer import cli
from attention_transfer.benchmark.synthetic_images import cifar_files
from attention_transfer.runs import Run

STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "A tiny study",
    "settings": {
        "epochs": 1,
        "batch_size": 8,
        "image_size": 16,
        "precision": "fp32",
        "workers": 0,
        "probes": 4,
        "trust_teacher": True,
        "lr": 0.05,
    },
    "seeds": "0-1",
    "data": ["folder:images"],
    "teachers": {"big": {"student": "wrn-10-2", "settings": {"epochs": 2}}},
    "pairs": {"small from big": {"student": "wrn-10-1", "teacher": "big"}},
    "arms": {"alone": {"teacher": "none"}, "AT+KD": {"kd_alpha": 0.9}},
    "paper": {"small from big": {"AT+KD": "7.51 M"}},
}


def write_images(folder: Path) -> None:
    """Write images of two classes, a bright top or a bright bottom."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label, name in enumerate(("top", "bottom")):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[label * 8 : label * 8 + 8] += 150
                Image.fromarray(pixels).save(place / f"{number}.png")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "attention_transfer", *arguments]


def study(
    folder: Path, *arguments: str, value: dict[str, Any] = STUDY, code: int = 0
) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    if not (folder / "images").exists():
        write_images(folder)
    done = subprocess.run(
        command("study", "tiny.yaml", "--out", "out", "--no-measure", *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study run in two processes; its working folder, and the document it printed."""
    folder = tmp_path_factory.mktemp("study")
    done = study(folder, "--processes", "2", "--json")
    return folder, json.loads(done.stdout)


def test_a_study_in_two_processes_leaves_results_a_table_and_a_report(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, document = finished
    written = json.loads((folder / "out/study.json").read_text())
    assert document["failed"] == {}
    assert document["rows"] == written["rows"]
    assert written["complete"]
    assert (written["runs_planned"], written["runs_finished"]) == (5, 5)
    (row,) = written["rows"]
    for arm in row["arms"]:
        runs = [
            Run(folder / "out/runs/folder-images/small-from-big" / arm["arm"].lower() / name)
            for name in ("seed-0", "seed-1")
        ]
        assert list(arm["test_errors"].values()) == [run.test_error for run in runs]
        assert [run.config.seed for run in runs] == [0, 1]
    taught = Run(folder / "out/runs/folder-images/small-from-big/at+kd/seed-0")
    teacher = Run(folder / "out/teachers/folder-images/big")
    assert teacher.config.epochs == 2
    assert row["teacher_test_error"] == teacher.test_error
    assert taught.record.teacher.weights_fingerprint == teacher.record.student.weights_fingerprint
    assert taught.record.cache is not None
    assert len(list((folder / "out/caches/folder-images").iterdir())) == 1
    assert "7.51 (M)" in (folder / "out/table.md").read_text()
    page = (folder / "out/report.html").read_text()
    assert "7.51 (M)" in page
    assert "small from big, folder:images" in page


def test_a_finished_study_trains_nothing_again(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    record = folder / "out/teachers/folder-images/big/record.json"
    before = record.stat().st_mtime_ns
    done = study(folder)
    assert "0 are missing" in done.stdout
    assert "begins" not in done.stdout
    assert "tiny" in done.stdout
    assert record.stat().st_mtime_ns == before


def test_more_seeds_are_added_to_old_results(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    done = study(folder, "--seeds", "0-2")
    assert "2 are missing" in done.stdout
    assert json.loads((folder / "out/study.json").read_text())["runs_finished"] == 7


def test_a_changed_study_over_old_results_shows_the_difference(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    changed = {**STUDY, "arms": {"alone": {"teacher": "none"}, "AT+KD": {"kd_alpha": 0.5}}}
    done = study(finished[0], value=changed, code=2)
    assert "arms AT+KD kd_alpha was 0.9, is 0.5" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1


def test_the_plan_has_times_by_measured_steps_and_writes_nothing(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    done = subprocess.run(
        command("study", "tiny.yaml", "--out", "plan", "--plan", "--json"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    plan = json.loads(done.stdout)
    assert (plan["teachers"], plan["runs"], plan["finished"]) == (1, 4, 0)
    assert plan["missing"]["seconds"] > 0
    assert plan["missing"]["cache_bytes"] > 0
    assert plan["missing"]["kinds"] == 3
    assert not (folder / "plan").exists()


def test_runs_of_another_study_without_its_document_are_found(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    changed = {**STUDY, "settings": {**STUDY["settings"], "batch_size": 5}}
    document = (folder / "out/study.json").read_bytes()
    (folder / "out/study.json").unlink()
    try:
        done = study(folder, value=changed, code=2)
    finally:
        (folder / "out/study.json").write_bytes(document)
    assert "holds a run of another study: setting batch_size was 8, is 5" in done.stderr


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_study_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, processes: int) -> None:
    longer = {**STUDY, "settings": {**STUDY["settings"], "epochs": 12, "checkpoint_steps": 5}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(longer, sort_keys=False))
    write_images(tmp_path)
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
    study(tmp_path, "--seeds", "1", value=longer)
    assert json.loads((tmp_path / "out/study.json").read_text())["complete"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_lets_the_runs_save_and_names_the_line_that_resumes(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    longer = {**STUDY, "settings": {**STUDY["settings"], "epochs": 2000}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(longer, sort_keys=False))
    write_images(tmp_path)
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


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    arms = {
        "alone": {"teacher": "none"},
        "broken": {"pairs": "nothing:group1"},
        "KD": {"attention": "none", "kd_alpha": 0.9},  # before AT, which needs more of the teacher
        "AT": {},
    }
    value = {**STUDY, "arms": arms, "seeds": "1", "paper": {}}
    done = study(tmp_path, "--processes", "2", value=value, code=1)
    assert "/broken/seed-0 failed: attention-transfer: " in done.stdout
    assert "1 runs are missing; run them: attention-transfer study tiny.yaml" in done.stdout
    document = json.loads((tmp_path / "out/study.json").read_text())
    assert (document["runs_planned"], document["runs_finished"]) == (5, 4)
    assert not document["complete"]


def test_a_setting_chosen_on_validation_is_recorded(tmp_path: Path) -> None:
    value = {
        **STUDY,
        "seeds": "1",
        "paper": {},
        "arms": {"alone": {"teacher": "none"}},
        "select": {"setting": "lr", "values": [0.001, 0.05]},
    }
    study(tmp_path, value=value)
    document = json.loads((tmp_path / "out/study.json").read_text())
    (selection,) = document["selections"]
    errors = selection["validation_errors"]
    assert selection["chosen"] == min(errors, key=errors.get)
    folders = {run["folder"] for run in document["runs"] if run["folder"].startswith("selection/")}
    for folder in folders:
        record = Run(tmp_path / "out" / folder).record
        assert record.final.test_error is None
        assert record.final.held_out.split == "validation"
        assert not (tmp_path / "out" / folder / "predictions.npz").exists()
    table_run = Run(tmp_path / "out/runs/folder-images/small-from-big/alone/seed-0")
    assert table_run.config.lr == float(selection["chosen"])
    assert table_run.record.final.test_error is not None


def test_the_commands_of_a_study_run_it(tmp_path: Path) -> None:
    value = {**STUDY, "seeds": "1"}
    lines = study(tmp_path, "--commands", value=value).stdout.splitlines()
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert [line[1] for line in words] == ["train", "cache", "train", "distill"]
    for line in words:
        subprocess.run(
            command(*line[1:]), cwd=tmp_path, capture_output=True, timeout=280, check=True
        )
    (line,) = study(tmp_path, "--commands", value=value).stdout.splitlines()
    assert line.startswith("# all runs are finished")
    study(tmp_path, value=value)
    assert json.loads((tmp_path / "out/study.json").read_text())["complete"]
    taught = Run(tmp_path / "out/runs/folder-images/small-from-big/at+kd/seed-0")
    assert taught.record.cache.seconds_building < 1


def test_cifar_in_minutes_has_the_recipes_settings(tmp_path: Path) -> None:
    value = {
        "name": "minutes",
        "title": "CIFAR-10 in minutes",
        "data": ["cifar10"],
        "seeds": "1",
        "settings": {"probes": 0},
        "teachers": {"big": {"student": "wrn-10-2", "settings": {"trust_teacher": False}}},
        "pairs": {"small from big": {"student": "wrn-10-1", "teacher": "big"}},
        "arms": {"alone": {"teacher": "none"}, "AT": {"trust_teacher": True}},
    }
    (tmp_path / "minutes.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    arguments = ["--data", f"cifar10:{tmp_path / 'cifar'}", "--recipe", "minutes", "--no-measure"]
    with cifar_files(tmp_path / "cifar", images=20):
        assert cli.main(["study", "minutes.yaml", *arguments, "--out", "out"]) == 0
    (folder,) = (tmp_path / "out/runs").iterdir()
    run = Run(folder / "small-from-big/at/seed-0")
    config = run.config
    assert (config.epochs, config.batch_size, config.schedule) == (12, 512, "one-cycle")
    assert (config.label_smoothing, run.record.cache.views) == (0.1, 12)
    assert len(run.metrics) == 12
