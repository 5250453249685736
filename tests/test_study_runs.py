"""Studies that run, in this process: results, resumed and grown, chosen settings, failures."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import cli
from attention_transfer.benchmark.synthetic_images import cifar_files
from attention_transfer.runs import Run
from tiny_study import STUDY, run_command, run_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study that was run; its working folder, and the document it printed."""
    folder = tmp_path_factory.mktemp("study")
    return folder, json.loads(run_study(folder, "--json").stdout)


def test_a_study_leaves_results_a_table_and_a_report(
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
    done = run_study(folder)
    assert "0 are missing" in done.stdout
    assert "begins" not in done.stdout
    assert "tiny" in done.stdout
    assert record.stat().st_mtime_ns == before


def test_more_seeds_are_added_to_old_results(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    done = run_study(folder, "--seeds", "0-2")
    assert "2 are missing" in done.stdout
    assert json.loads((folder / "out/study.json").read_text())["runs_finished"] == 7


def test_a_changed_study_over_old_results_shows_the_difference(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    changed = {**STUDY, "arms": {"alone": {"teacher": "none"}, "AT+KD": {"kd_alpha": 0.5}}}
    done = run_study(finished[0], value=changed, code=2)
    assert "setting kd_alpha was 0.9, is 0.5; restore them" in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.endswith("...")]) == 1


def test_the_plan_has_times_by_measured_steps_and_writes_nothing(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    done = run_command(folder, "study", "tiny.yaml", "--out", "plan", "--plan", "--json")
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
        done = run_study(folder, value=changed, code=2)
    finally:
        (folder / "out/study.json").write_bytes(document)
    assert "holds a run with other settings: setting batch_size was 8, is 5" in done.stderr


def test_a_run_that_fails_or_diverges_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    arms = {
        "alone": {"teacher": "none"},
        "broken": {"pairs": "nothing:group1"},
        "diverges": {"lr": 1e30},
    }
    value = {**STUDY, "arms": arms, "seeds": "1", "paper": {}}
    done = run_study(tmp_path, value=value, code=1)
    assert "/broken/seed-0 failed: " in done.stdout
    assert "/diverges/seed-0 diverged: " in done.stdout
    assert "1 runs are missing; run them: attention-transfer study tiny.yaml" in done.stdout
    document = json.loads((tmp_path / "out/study.json").read_text())
    counts = [document[f"runs_{kind}"] for kind in ("planned", "finished", "diverged")]
    assert (counts, document["complete"]) == ([4, 2, 1], False)
    del arms["broken"]
    done = run_study(tmp_path, value=value)  # what diverged is not trained again
    assert "begins" not in done.stdout
    assert "0 of 1, 1 diverged" in done.stdout
    folder = tmp_path / "out/runs/folder-images/small-from-big/diverges/seed-0"
    assert "is not finite in epoch 1" in (folder / "diverged.txt").read_text()


def test_values_that_all_diverge_are_named(tmp_path: Path) -> None:
    value = {
        **STUDY,
        "seeds": "1",
        "paper": {},
        "arms": {"alone": {"teacher": "none"}},
        "select": {"setting": "lr", "values": ["1e30", "1e31"]},
    }
    done = run_study(tmp_path, value=value, code=1)
    assert "choosing lr for folder:images, small from big, alone: the runs of every" in done.stdout


def test_errors_of_validation_images_are_called_that(tmp_path: Path) -> None:
    settings = {**STUDY["settings"], "test": "false"}
    value = {**STUDY, "settings": settings, "seeds": "1", "arms": {"alone": {"teacher": "none"}}}
    done = run_study(tmp_path, value={**value, "paper": {}})
    assert "small from big, folder:images: validation error" in done.stdout
    for name in ("table.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "Validation error in percent over seeds" in text
        assert "Test error" not in text
    (row,) = json.loads((tmp_path / "out/study.json").read_text())["rows"]
    record = Run(tmp_path / "out/runs/folder-images/small-from-big/alone/seed-0").record
    assert row["arms"][0]["validation_errors"] == {"0": record.final.validation_error}


def test_a_setting_chosen_on_validation_is_recorded(tmp_path: Path) -> None:
    value = {
        **STUDY,
        "seeds": "1",
        "paper": {},
        "arms": {"alone": {"teacher": "none"}},
        "select": {"setting": "lr", "values": [0.001, 0.05]},
    }
    run_study(tmp_path, value=value)
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
    lines = run_study(tmp_path, "--commands", value=value).stdout.splitlines()
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert [line[1] for line in words] == ["train", "cache", "train", "distill"]
    for line in words:
        run_command(tmp_path, *line[1:])
    (line,) = run_study(tmp_path, "--commands", value=value).stdout.splitlines()
    assert line.startswith("# all runs are finished")
    run_study(tmp_path, value=value)
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
