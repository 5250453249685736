"""``--seeds`` and ``--no-test`` of train and distill."""

import json
import shlex
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

import attention_transfer as at
from attention_transfer import cli
from attention_transfer.cli import seeds
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError, Interrupted
from attention_transfer.runs import Run

ARGUMENTS = [
    *("train", "--model", "wrn-10-1", "--epochs", "1", "--batch-size", "10"),
    *("--precision", "fp32", "--no-report", "--probes", "0"),
]


@pytest.fixture
def three(small_runs: None, capsys: pytest.CaptureFixture[str]) -> str:
    """Train with three seeds; return what was printed."""
    assert cli.main([*ARGUMENTS, "--seeds", "0,2,5", "--out", "out"]) == 0
    return capsys.readouterr().out


def test_every_seed_has_a_run_and_the_table_their_statistics(three: str) -> None:
    runs = [Run(Path(f"out/seed-{seed}")) for seed in (0, 2, 5)]
    assert [run.config.seed for run in runs] == [0, 2, 5]
    mean = sum(run.test_error for run in runs) / 3
    line = next(line for line in three.splitlines() if line.startswith("test "))
    assert line.split()[1:3] == ["3", f"{mean:.2f}"]
    assert "95 % interval of the mean" in three


def test_the_same_command_trains_only_what_is_missing(
    three: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("out/seed-0/record.json").stat().st_mtime_ns
    assert cli.main([*ARGUMENTS, "--seeds", "0,2,5,6", "--out", "out", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["test"]["n"] == 4
    assert set(document["test"]["errors"]) == {"0", "2", "5", "6"}
    assert Path("out/seed-0/record.json").stat().st_mtime_ns == before


def test_other_settings_over_old_runs_are_refused(
    three: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--model", "wrn-10-2", *ARGUMENTS[3:]]
    assert cli.main([*arguments, "--seeds", "8,2", "--out", "out"]) == 2
    message = "the run in out/seed-2 began with setting student wrn-10-1, and is resumed with wrn-1"
    assert message in capsys.readouterr().err
    assert not Path("out/seed-8").exists()
    assert cli.main([*ARGUMENTS, "--seeds", "7-8", "--out", "out/seed-0"]) == 2
    assert "out/seed-0 holds a run, expected a folder" in capsys.readouterr().err


def test_a_begun_run_with_other_settings_is_refused_before_anything_is_trained(
    three: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/seed-0/record.json").unlink()
    arguments = ["train", "--model", "wrn-10-2", *ARGUMENTS[3:]]
    assert cli.main([*arguments, "--seeds", "7,0", "--out", "out"]) == 2
    assert "the run in out/seed-0 began with setting student" in capsys.readouterr().err
    assert not Path("out/seed-7").exists()


def test_an_interruption_names_the_command_for_all_seeds(
    small_runs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any, **settings: Any) -> NoReturn:
        raise Interrupted("stopped by SIGTERM; resume the run: ...", signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("attention_transfer.api.run", stopped)
        assert cli.main([*ARGUMENTS, "--seeds", "3,0", "--out", "out"]) == 128 + signal.SIGTERM
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "stopped by SIGTERM at seed 3; go on: attention-transfer train" in line
    words = shlex.split(line.partition("go on: attention-transfer ")[2])
    assert cli.main(words) == 0
    assert [Run(Path(f"out/seed-{seed}")).config.seed for seed in (3, 0)] == [3, 0]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_needs_a_folder_and_is_told_in_one_line(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seeds, "AGENT", 1)
    monkeypatch.setenv("RANK", rank)
    assert cli.main([*ARGUMENTS, "--seeds", "0-1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "--seeds" in line]
    assert len(lines) == (rank == "0")
    assert all("give --out DIR" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1-"], "--seeds is '1-', it should be a range such as 0-4"),
        (["--seeds", "0"], "--seeds is '0'"),
        (["--seeds", "3,3"], "each seed once"),
        (["--seeds", "3", "--seed", "1"], "got --seed and --seeds"),
    ],
)
def test_bad_seeds(
    flags: list[str], message: str, small_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*ARGUMENTS, *flags, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_run_without_the_test_split_evaluates_validation_images_alone(
    small_runs: None, data: DataSet
) -> None:
    teacher = at.train("wrn-10-2", epochs=1, batch_size=10, precision="fp32", out="teacher")
    assert teacher.record.final.held_out.split == "test"
    run = at.distill(
        teacher=teacher,
        student="wrn-10-1",
        epochs=1,
        batch_size=10,
        precision="fp32",
        ema=0.9,
        test=False,
        out="chosen",
    )
    final = run.record.final
    assert (final.test_error, final.test_images) == (None, None)
    assert run.confusion("test") is None
    assert final.held_out.error == final.validation_error
    assert run.record.teacher.test_error is None
    assert run.record.ema.final.test_error is None
    assert run.predictions is None
    assert run.class_names == list(data.class_names)
    with pytest.raises(InputError, match=r"left the test images unread \(--no-test\); evaluate it"):
        _ = run.test_error
    page = Path("chosen/report.html").read_text()
    assert "validation error" in page
    assert "test images unread" in page
