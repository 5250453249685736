"""What a run is worth: beside guessing, and beside the student alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attention_transfer as at
from attention_transfer import cli
from attention_transfer.config import DistillConfig
from attention_transfer.report.verdict import find_alone, verdict
from attention_transfer.runs import Run
from conftest import SMALL, CrashAfter, CrashError
from made_runs import made_run


def pair(folder: Path, wrong: int, alone_wrong: int, images: int = 100, **settings: Any) -> Run:
    """Write a distilled run and the student alone beside it; return the distilled one."""
    made_run(folder / "other", wrong=tuple(range(images - alone_wrong, images)), images=images)
    made_run(folder / "taught", teacher="wrn-10-2", wrong=tuple(range(wrong)), images=images)
    return Run(folder / "taught")


def test_fewer_errors_are_a_gain_only_where_the_test_finds_one(tmp_path: Path) -> None:
    judged = verdict(pair(tmp_path / "a", wrong=5, alone_wrong=30))
    assert judged.outcome == "better"
    assert judged.sentences[0].startswith("Better than the student alone: 25.0 points fewer errors")
    judged = verdict(pair(tmp_path / "b", wrong=9, alone_wrong=10))
    assert judged.outcome == "no difference"
    assert "no difference can be told from 100 images" in judged.sentences[0]
    judged = verdict(pair(tmp_path / "c", wrong=30, alone_wrong=5))
    assert judged.outcome == "worse"
    assert judged.sentences[0].endswith(
        "Try --beta auto, which never pulls harder than the labels."
    )


def test_the_student_alone_is_found_beside_the_run(tmp_path: Path) -> None:
    taught = pair(tmp_path, wrong=5, alone_wrong=30)
    found = find_alone(taught)
    assert found is not None
    assert found.name == "other"
    assert verdict(taught).alone == str(found.folder)


@pytest.mark.parametrize("changed", [{"lr": 0.3}, {"seed": 1}, {"epochs": 5}, {"batch_size": 32}])
def test_a_run_with_other_settings_is_not_the_student_alone(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    made_run(tmp_path / "taught", teacher="wrn-10-2")
    made_run(tmp_path / "other", **changed)
    (tmp_path / "file").write_text("no run")
    (tmp_path / "folder").mkdir()
    judged = verdict(Run(tmp_path / "taught"))
    assert judged.outcome == "not compared"
    assert "--baseline trains one" in judged.sentences[0]


def test_other_images_are_not_compared(tmp_path: Path) -> None:
    taught = pair(tmp_path, wrong=5, alone_wrong=30)
    (tmp_path / "other" / "predictions.npz").unlink()
    judged = verdict(Run(taught.folder))
    assert judged.outcome == "not compared"
    assert "its answers cannot be read" in judged.sentences[0]


def test_a_damaged_run_beside_it_costs_no_verdict(tmp_path: Path) -> None:
    taught = pair(tmp_path, wrong=5, alone_wrong=30)
    (tmp_path / "other" / "predictions.npz").write_bytes(b"damaged")
    assert verdict(Run(taught.folder)).outcome == "not compared"
    (tmp_path / "other" / "config.yaml").write_text("epochs: [")
    assert find_alone(Run(taught.folder)) is None


def test_a_run_with_a_loss_of_its_own_is_not_the_student_alone(tmp_path: Path) -> None:
    made_run(tmp_path / "taught", teacher="wrn-10-2")
    made_run(tmp_path / "penalized", input_gradient_norm_beta=0.1)
    assert find_alone(Run(tmp_path / "taught")) is None
    made_run(tmp_path / "plain")
    found = find_alone(Run(tmp_path / "taught"))
    assert found is not None
    assert found.name == "plain"


def test_a_network_that_always_gives_one_class_has_learned_nothing(tmp_path: Path) -> None:
    # 100 images of three classes, 34 of them of the first: 66 wrong is always answering it.
    made_run(tmp_path / "run", wrong=tuple(range(66)))
    judged = verdict(Run(tmp_path / "run"))
    assert judged.outcome == "untrained"
    assert "always answering 'cat' errs on 66.0 %" in judged.sentences[0]
    made_run(tmp_path / "better", wrong=tuple(range(65)))
    assert verdict(Run(tmp_path / "better")).outcome != "untrained"


def edited(folder: Path, **final: Any) -> Run:
    record = json.loads((folder / "record.json").read_text())
    record["final"] |= final
    (folder / "record.json").write_text(json.dumps(record))
    return Run(folder)


def test_a_loss_above_guessing_is_said(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", wrong=(1, 2))
    (sentence,) = verdict(edited(folder, test_loss=1.2)).sentences
    assert "1.20, is above that of guessing evenly, 1.10 (ln 3)" in sentence
    assert verdict(edited(folder, test_loss=1.09)).sentences == ()


def test_a_term_that_is_most_of_the_loss_is_said(tmp_path: Path) -> None:
    # Two thirds of the last epoch's loss, in the runs that are made here.
    taught = pair(tmp_path, wrong=5, alone_wrong=30)
    assert "activation_attention was 67 % of the loss" in str(verdict(taught))


def test_the_settings_of_the_student_alone_are_those_of_the_run() -> None:
    config = DistillConfig.checked(
        {"student": "wrn-10-1", "teacher": "wrn-10-2@random", "lr": 0.2, "beta": 30, "ema": 0.9}
    )
    alone = config.alone()
    assert (alone.teacher, alone.beta, alone.lr, alone.ema) == (None, 1000.0, 0.2, 0.9)


SETTINGS: dict[str, Any] = {**SMALL, "probes": 0, "beta": 10, "baseline": True}


def weights(run: Run) -> bytes:
    return (run.folder / "model.safetensors").read_bytes()


def test_a_baseline_is_the_run_of_train(small_runs: None, tmp_path: Path) -> None:
    names = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", "data": "small"}
    run = at.distill(**names, out=tmp_path / "run", **SETTINGS)
    plain = {name: value for name, value in SETTINGS.items() if name not in ("beta", "baseline")}
    alone = at.train("wrn-10-1", data="small", out=tmp_path / "alone", **plain)
    one, other = (
        (where / "model.safetensors").read_bytes() for where in (run.alone.folder, alone.folder)
    )
    assert one == other
    assert verdict(run).alone == str(run.alone.folder)


def test_a_run_that_stopped_in_its_baseline_goes_on_with_it(
    small_runs: None, tmp_path: Path
) -> None:
    names = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", "data": "small"}
    steps_of_a_run = 15
    with pytest.raises(CrashError):
        at.distill(
            **names, out=tmp_path / "run", progress=CrashAfter(steps_of_a_run + 4), **SETTINGS
        )
    run = Run(tmp_path / "run")
    assert run.is_finished
    assert not run.alone.is_finished
    resumed = at.resume(tmp_path / "run")
    assert resumed.alone.is_finished
    whole = at.distill(**names, out=tmp_path / "whole", **SETTINGS)
    assert weights(resumed.alone) == weights(whole.alone)
    with pytest.raises(at.InputError, match="finished"):
        at.resume(tmp_path / "run")


def test_a_module_has_no_baseline(small_runs: None, tmp_path: Path) -> None:
    student = at.models.build("wrn-10-1", classes=3)
    with pytest.raises(at.InputError, match="builds the student a second time"):
        at.distill(
            teacher="wrn-10-2@random",
            student=student,
            data="small",
            out=tmp_path / "run",
            **SETTINGS,
        )
    assert not (tmp_path / "run").exists()


def test_the_command_ends_with_the_verdict(
    small_runs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--teacher=wrn-10-2@random", "--student=wrn-10-1", "--data=small", "--lr=0.05"]
    arguments += ["--epochs=2", "--batch-size=10", "--probes=0", "--no-report", "--beta=10"]
    out = tmp_path / "run"
    code = cli.main(["distill", *arguments, f"--out={out}", "--baseline"])
    text = capsys.readouterr().out
    assert code == 0
    assert "the student alone: " in text
    assert any(sentence in text for sentence in verdict(Run(out)).sentences)
    code = cli.main(["distill", *arguments, f"--out={tmp_path / 'other'}", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["outcome"] in ("not compared", "untrained")
    assert np.all([isinstance(one, str) for one in document["verdict"]["sentences"]])
