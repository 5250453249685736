"""Whole runs with gradient terms, by the command line's words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import DistillConfig
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress, run
from attention_transfer.training.configured_terms import configured_terms
from conftest import SMALL

pytestmark = pytest.mark.usefixtures("small_runs")
PAIR: dict[str, Any] = {"teacher": "teacher", "student": "wrn-10-1"}


@pytest.mark.usefixtures("teacher")
def test_the_command_trains_with_every_gradient_term(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "distill --teacher teacher --student wrn-10-1 --out student --epochs 2 --batch-size 10 "
        "--lr 0.05 --precision bf16 --attention gradient,activation --gradient-beta 0.5 "
        "--gradient-form squared --gradient-map sum --gradient-normalize --flip-symmetry-beta 0.1 "
        "--flip-axis vertical --flip-classes 0,2 --input-gradient-norm-beta 0.01"
    )
    assert main(flags.split()) == 0
    out = capsys.readouterr().out
    assert "gradient attention: weight 0.25 on ||d||^2" in out
    assert "flip symmetry: weight 0.05 on ||d||^2" in out
    assert "input gradient norm: weight 0.005 on ||J||^2" in out
    student = Run(Path("student"))
    row = student.metrics[-1]
    assert set(row.terms) == {
        "cross_entropy",
        "activation_attention",
        "gradient_attention",
        "flip_symmetry",
        "input_gradient_norm",
    }
    assert all(value >= 0 for value in row.terms.values())
    assert 0 < row.attention_agreement["input:input"] <= 1
    assert student.config.attention == "activation,gradient"


class Crash(RunProgress):
    def epoch(self, row: Any, epochs: int) -> None:
        raise ConnectionError


@pytest.mark.usefixtures("teacher")
def test_runs_with_gradient_terms_repeat_and_resume_bit_by_bit() -> None:
    asked = {**PAIR, **SMALL, "gradient_beta": 0.5, "flip_symmetry_beta": 0.5}
    whole = at.distill(**asked, out="whole")
    config = DistillConfig.checked({**asked, "out": "parts"})
    with pytest.raises(ConnectionError):
        run(config, Crash())
    resumed = at.resume("parts")
    one, other = (load_file(each.folder / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def names(**settings: Any) -> list[str]:
    return [term.name for term in configured_terms(DistillConfig.checked({**PAIR, **settings}))]


def test_terms_not_asked_for_are_off() -> None:
    assert names() == ["cross_entropy", "activation_attention"]
    assert names(attention="gradient", gradient_beta=1) == ["cross_entropy", "gradient_attention"]
    assert names(gradient_beta=1)[1:] == ["activation_attention", "gradient_attention"]
    assert names(attention="none", flip_symmetry_beta=1) == ["cross_entropy", "flip_symmetry"]
    assert names(attention="none", input_gradient_norm_beta=1)[1:] == ["input_gradient_norm"]


def test_settings_reach_the_terms() -> None:
    settings = {"flip_symmetry_beta": 2, "flip_axis": "vertical", "flip_classes": "0,1,3,8"}
    config = DistillConfig.checked({**PAIR, **settings, "gradient_form": "squared"})
    assert repr(configured_terms(config)[-1]) == repr(
        at.FlipSymmetry(2.0, "squared", "vertical", (0, 1, 3, 8))
    )


def test_the_inputs_of_gradients_reach_all_gradient_terms() -> None:
    betas = dict.fromkeys(("gradient_beta", "flip_symmetry_beta", "input_gradient_norm_beta"), 1)
    config = DistillConfig.checked({**PAIR, **betas, "gradient_inputs": "normalized"})
    assert [term.inputs for term in configured_terms(config)[-3:]] == ["normalized"] * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention": "gradient"}, "attention gradient needs its weight.*--gradient-beta"),
        ({"attention": "activation,gradiant"}, "attention is 'activation,gradiant', expected one"),
        ({"gradient_beta": -1}, "gradient_beta is -1"),
        ({"flip_symmetry_beta": "nan"}, "flip_symmetry_beta is 'nan'"),
        ({"input_gradient_norm_beta": -0.1}, "input_gradient_norm_beta is -0.1"),
        ({"gradient_form": "code"}, "gradient_form is 'code', expected one of paper, squared"),
        ({"flip_classes": "zero"}, "flip_classes is 'zero'"),
        ({"flip_axis": "diagonal"}, "flip_axis is 'diagonal', expected one of horizontal"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        names(**settings)
