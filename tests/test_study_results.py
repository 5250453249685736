"""Results of studies, from runs that are written without training; studies over old results."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import cli
from attention_transfer.config.yaml_files import write_config_file
from attention_transfer.errors import InputError
from attention_transfer.experiments.study.plan import Plan, PlannedRun
from attention_transfer.experiments.study.planning import make_plan
from attention_transfer.experiments.study.preflight import check_document
from attention_transfer.experiments.study.running import StudyFolder
from attention_transfer.runs import Run
from made_runs import made_run
from small_study import SMALL, plan, study


def finish(folder: Path, made: Plan, wrong: dict[str, int]) -> None:
    """Write the folders of a plan's runs as if they were finished."""
    for run in made.teachers:
        made_run(folder / run.folder, student="wrn-10-2", wrong=(1, 2), probes=False)
    for cell, seeds in made.cells.items():
        for seed, path in seeds.items():
            if not (folder / path).exists():
                count = wrong[cell.arm] + seed
                made_run(folder / path, wrong=tuple(range(count)), probes=False, seed=seed)


def test_results_are_those_of_the_records(tmp_path: Path) -> None:
    value = study(paper={"small from big": {"AT": "7.93 C", "teacher": "5 M"}}, seeds="0-2")
    finish(tmp_path, make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    StudyFolder(value, tmp_path, {}).write()
    document = json.loads((tmp_path / "study.json").read_text())
    assert document["complete"]
    (row,) = document["rows"]
    alone, at, _ = row["arms"]
    assert alone["test_errors"] == {"0": 12.0, "1": 13.0, "2": 14.0}
    assert at["statistics"]["mean"] == 9.0
    assert at["paper"] == {"error": 7.93, "top5_error": None, "mark": "C"}
    assert row["teacher_test_error"] == 2.0
    compared = {(one["arm"], one["baseline"]): one for one in row["comparisons"]}
    assert compared["AT", "alone"]["mean"] == -4.0
    assert compared["AT", "alone"]["established"]
    table = (tmp_path / "table.md").read_text()
    assert "| AT | 3 | 9.00 | 9.00 | 1.00 | 7.93 (C) | vs alone: gain of 4.00 points" in table
    assert "| teacher |  | 2.00 |  |  | 5 (M) |  |" in table
    assert "Mark M at the paper's figures: remembered, not confirmed." in table


def test_an_arm_may_be_compared_with_its_own_teacher(tmp_path: Path) -> None:
    value = study(compare={"AT": ["alone", "teacher"], "alone": "teacher"}, seeds="0-2")
    finish(tmp_path, make_plan(value), {"alone": 12, "AT": 0, "AT+KD": 8})
    StudyFolder(value, tmp_path, {}).write()
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    compared = {(one["arm"], one["baseline"]): one for one in row["comparisons"]}
    assert compared["AT", "teacher"]["mean"] == -1.0  # 0, 1 and 2 % less 2 %
    assert not compared["AT", "teacher"]["established"]
    assert compared["alone", "teacher"]["sentence"].startswith("loss of 11.00 points established")
    assert "vs teacher: no difference seen" in (tmp_path / "table.md").read_text()


def test_teachers_that_differ_in_their_seeds() -> None:
    teachers = {f"big {seed}": {"student": "wrn-10-2", "seed": seed} for seed in (0, 7)}
    pairs = {name: {"student": "wrn-10-1", "teacher": name} for name in teachers}
    made = plan(teachers=teachers, pairs=pairs)
    assert [run.settings["seed"] for run in made.teachers] == [0, 7]


def diverge(folder: Path, run: PlannedRun) -> None:
    """Write the folder of a run as if it had diverged."""
    Run.create(folder / run.folder, run.config(folder)).write_divergence("the loss is not finite")


def test_runs_that_diverged_are_counted_and_compared_by_no_seed(tmp_path: Path) -> None:
    value = study(seeds="0-2")
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    for run in made.runs:
        if run.folder.endswith(("/at/seed-1", "at+kd/seed-0", "at+kd/seed-1", "at+kd/seed-2")):
            shutil.rmtree(tmp_path / run.folder)
            diverge(tmp_path, run)
    results = StudyFolder(value, tmp_path, {}).write()
    assert results.complete
    document = json.loads((tmp_path / "study.json").read_text())
    assert (document["runs_finished"], document["runs_diverged"]) == (10 - 4, 4)
    at, combined = document["rows"][0]["arms"][1:]
    assert (at["test_errors"], at["diverged_seeds"]) == ({"0": 8.0, "2": 10.0}, [1])
    assert combined["diverged_seeds"] == [0, 1, 2]
    (difference,) = document["rows"][0]["comparisons"]
    assert (difference["arm"], difference["n"], difference["mean"]) == ("AT", 2, -4.0)
    table = (tmp_path / "table.md").read_text()
    assert "| AT | 2 of 3, 1 diverged | 9.00 |" in table
    assert "| AT+KD | 0 of 3, 3 diverged |  |" in table


def test_a_value_that_diverges_is_never_chosen(tmp_path: Path) -> None:
    value = study(select={"setting": "lr", "values": ["0.1", "9"], "by": "alone"})
    finite, infinite = make_plan(value).selection_runs
    made_run(tmp_path / finite.folder, wrong=tuple(range(90)), probes=False)
    diverge(tmp_path, infinite)
    results = StudyFolder(value, tmp_path, {}).write()
    (selection,) = json.loads((tmp_path / "study.json").read_text())["selections"]
    assert selection["validation_errors"] == {"0.1": 90.0, "9": None}
    assert selection["chosen"] == "0.1"
    assert {run.settings["lr"] for run in results.plan.runs} == {0.1}
    assert "| 0.1: 90.00, 9: diverged | 0.1 |" in (tmp_path / "table.md").read_text()
    shutil.rmtree(tmp_path / finite.folder)
    diverge(tmp_path, finite)
    results = StudyFolder(value, tmp_path, {}).write()
    assert results.plan.selections[0].chosen is None
    assert {run.waits_for for run in results.plan.runs} == {"lr"}
    assert "| 0.1: diverged, 9: diverged | none |" in (tmp_path / "table.md").read_text()


def leave_test_unread(folders: list[Path]) -> None:
    """Change the records of finished runs to those of ``--no-test``: 50, 51, ... % wrong."""
    for number, folder in enumerate(folders):
        content = json.loads((folder / "record.json").read_text())
        content["final"] |= {name: None for name in content["final"] if name.startswith("test_")}
        content["final"]["validation_error"] = 50.0 + number
        (folder / "record.json").write_text(json.dumps(content))


def test_a_study_that_selects_reads_validation_errors(tmp_path: Path) -> None:
    value = study(settings={"epochs": "2", "test": "false"})  # as a file has it
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    leave_test_unread([tmp_path / run.folder for run in made.all_runs])
    StudyFolder(value, tmp_path, {}).write()
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    found = [error for arm in row["arms"] for error in arm["validation_errors"].values()]
    assert sorted(found) == [51.0 + number for number in range(len(made.runs))]
    assert row["teacher_validation_error"] == 50.0
    table = (tmp_path / "table.md").read_text()
    assert "Validation error in percent over seeds" in table
    assert "## small from big, cluttered-digits: validation error" in table
    assert "test error" not in table.lower()


def test_errors_of_other_images_are_not_compared() -> None:
    arms = {"alone": {"teacher": "none"}, "AT": {"test": "no"}}
    message = (
        "compare AT: its errors are of validation images and those of alone of test images; give "
        "both the same setting test"
    )
    with pytest.raises(InputError, match=message):
        plan(arms=arms)
    assert plan(arms=arms, compare={}).runs


def test_each_arm_of_other_images_is_named_by_them(tmp_path: Path) -> None:
    arms = {"alone": {"teacher": "none"}, "AT": {"test": "no"}}
    value = study(arms=arms, compare={})
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8})
    leave_test_unread([tmp_path / run.folder for run in made.runs if "/at/" in run.folder])
    StudyFolder(value, tmp_path, {}).write()
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [arm.get("test_errors") for arm in row["arms"]] == [{"0": 12.0, "1": 13.0}, None]
    assert row["arms"][1]["validation_errors"] == {"0": 50.0, "1": 51.0}
    table = (tmp_path / "table.md").read_text()
    assert "Test or validation error in percent" in table
    assert "| AT (validation error) | 2 | 50.50 |" in table


def test_results_of_a_part_of_the_runs_are_written_too(tmp_path: Path) -> None:
    value = study()
    made = make_plan(value)
    made_run(tmp_path / made.runs[0].folder, wrong=(1, 2, 3), probes=False)
    results = StudyFolder(value, tmp_path, {}).write()
    assert not results.complete
    document = json.loads((tmp_path / "study.json").read_text())
    assert document["runs_finished"] == 1
    assert document["rows"][0]["arms"][0]["statistics"]["std"] is None
    assert "| alone | 1 of 2 | 3.00 |" in (tmp_path / "table.md").read_text()
    assert "| AT | 0 of 2 |" in (tmp_path / "table.md").read_text()


def commands(folder: Path, **changes: Any) -> int:
    """Print the commands of a study in a folder; return the exit code."""
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return cli.main(
        ["study", str(folder / "small.yaml"), "--commands", "--out", str(folder / "out")]
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder in whose folder ``out`` each run of the small study was begun."""
    for run in plan().all_runs:
        Run.create(tmp_path / "out" / run.folder, run.config(tmp_path / "out"))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": "0-9", "title": "Another title"},
        {"arms": {**SMALL["arms"], "AT 100": {"beta": "100"}}},
        {"arms": {"AT": {}}},
        {"settings": {"epochs": "02"}},
        {"data": ["cluttered-digits", "cifar10"]},
        {
            "teachers": {
                "big": {
                    "student": "wrn-10-2",
                    "ready": {"cifar10": "wrn-10-2@random"},
                    "on": {"cifar100": {"lr": "0.1"}},
                },
                "new": {"student": "wrn-16-2"},
            },
            "data": ["cluttered-digits", "cifar10", "cifar100"],
            "pairs": {
                "small from big": {
                    "student": "wrn-10-1",
                    "teacher": "big",
                    "data": ["cluttered-digits", "cifar10"],
                    "arms": ["alone", "AT"],
                },
                "small from new": {"student": "wrn-10-1", "teacher": "new"},
            },
        },
    ],
)
def test_a_study_may_grow_and_shrink_over_old_results(begun: Path, changes: dict[str, Any]) -> None:
    assert commands(begun, **changes) == 0


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings": {"epochs": "3"}}, "setting epochs was 2, is 3"),
        ({"arms": {**SMALL["arms"], "AT": {"beta": "9"}}}, "setting beta was 1000.0, is 9.0"),
        ({"arms": {"alone": {"attention": "none", "kd_alpha": "1"}}}, "setting teacher was None"),
        (
            {"pairs": {"small from big": {"student": "wrn-10-1", "teacher": "wrn-10-2@random"}}},
            "teachers/cluttered-digits/big, is wrn-10-2@random",
        ),
        ({"teachers": {"big": {"student": "wrn-10-4"}}}, "setting student was wrn-10-2, is wrn-10"),
        ({"cache": False}, "setting cache was "),
        (
            {"select": {"setting": "lr", "values": ["1", "2"]}, "settings": {}},
            "epochs was 2, is 15",
        ),
    ],
)
def test_what_a_run_was_made_from_may_not_change(
    begun: Path, changes: dict[str, Any], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands(begun, **changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert difference in line
    assert "holds a run with other settings" in line
    assert "restore them, remove that folder, or give another --out" in line


def test_a_studys_folder_may_be_moved(begun: Path) -> None:
    (begun / "out").rename(begun / "deeper")
    arguments = ["--commands", "--out", str(begun / "deeper")]
    (begun / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    assert cli.main(["study", str(begun / "small.yaml"), *arguments]) == 0


def test_another_choice_is_refused_when_it_is_made(begun: Path) -> None:
    select = {"setting": "lr", "values": ["0.1", "0.2"], "by": "alone"}
    assert commands(begun, select=select) == 0  # nothing is chosen yet
    for run in make_plan(study(select=select)).selection_runs:
        made_run(begun / "out" / run.folder, wrong=(1,), probes=False)
        config = run.config(begun / "out")
        write_config_file(config, begun / "out" / run.folder / "config.yaml")
    assert commands(begun, select=select) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 10_000])
def test_a_damaged_study_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study.json is damaged"):
        check_document(tmp_path)


def test_a_study_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema_version": 99, "study": {}}')
    with pytest.raises(InputError, match="schema version 99, expected 1"):
        check_document(tmp_path)
