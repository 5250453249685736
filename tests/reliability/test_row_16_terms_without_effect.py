"""Terms of weight zero, and students that cannot learn."""

from pathlib import Path

import pytest

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from conftest import SMALL, Listening


@pytest.mark.usefixtures("small_runs")
def test_a_term_of_weight_zero_is_said(teacher: Run) -> None:
    progress = Listening()
    at.distill(teacher=teacher, student="wrn-10-1", out="run", beta=0, progress=progress, **SMALL)
    assert [line for line in progress.lines if "activation_attention has weight 0" in line]


@pytest.mark.usefixtures("small_runs")
def test_a_loss_of_weight_zero_is_refused_before_anything_is_written() -> None:
    with pytest.raises(
        InputError, match=r"weight 0 \(cross_entropy\), so nothing would be learned"
    ):
        at.train("wrn-10-1", out="run", terms=[at.CrossEntropy(weight=0)], **SMALL)
    assert not Path("run").exists()


@pytest.mark.usefixtures("small_runs")
def test_a_student_without_anything_to_train_is_refused() -> None:
    network = at.models.build("wrn-10-1", 3).requires_grad_(False)
    with pytest.raises(InputError, match=r"no parameter of .* requires a gradient"):
        at.train(network, out="run", **SMALL)
    assert not Path("run").exists()
