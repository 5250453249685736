"""Row 1: an error at any step, or in validation; the run is resumed exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.training.train_step import TrainStep
from conftest import SMALL, CrashAfter, CrashError
from reliability.killing import final_state

pytestmark = pytest.mark.usefixtures("small_runs")

TINY: dict[str, Any] = {**SMALL, "batch_size": 16, "epochs": 2, "probes": 2, "report": False}
STEPS = 3
"""Of an epoch of 48 images."""


class Scaled(at.PairTerm):
    """A term with a parameter and a buffer of its own."""

    name = "scaled"
    seen: Tensor

    def __init__(self) -> None:
        super().__init__(0.1)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, pair: at.PairInputs) -> Tensor:
        self.seen = self.seen + 1
        means = pair.student_features.mean() - self.scale * pair.teacher_features.mean()
        return means.square()


KINDS: dict[str, dict[str, Any]] = {
    "live teacher, own term": {"terms": [Scaled()], "kd_alpha": 0.5, "full_activation_beta": 0.1},
    "cached teacher": {"cache": Path("targets"), "kd_alpha": 0.5},
    "gradient attention": {"attention": "activation,gradient", "gradient_beta": 0.1},
    "two loader workers": {"randaugment": 5, "workers": 2, "mixup": 0.2},
    "micro-batches, clipped": {"accumulate": 2, "clip_gradient": 0.5, "beta_schedule": "linear"},
}


def distill(teacher: Run, out: str, kind: str, progress: RunProgress | None = None) -> Run:
    settings = {**TINY, **KINDS[kind]}
    return at.distill(
        teacher=str(teacher.folder), student="wrn-10-1", out=out, progress=progress, **settings
    )


def resumed(out: str, kind: str) -> Run:
    terms = KINDS[kind].get("terms", [])
    return at.resume(out, terms=terms)


@pytest.mark.parametrize("kind", KINDS)
def test_after_every_step(teacher: Run, kind: str) -> None:
    expected = final_state(distill(teacher, "whole", kind).folder)
    own = kind == "live teacher, own term"
    for step in range(1, 2 * STEPS + 1) if own else (1, STEPS, 2 * STEPS - 1):
        out = f"crashed-{step}"
        with pytest.raises(CrashError):
            distill(teacher, out, kind, CrashAfter(step))
        assert final_state(resumed(out, kind).folder) == expected, step


def test_again_and_again(teacher: Run) -> None:
    """The same run, ended after each of its steps."""
    kind = "live teacher, own term"
    expected = final_state(distill(teacher, "whole", kind).folder)
    with pytest.raises(CrashError):
        distill(teacher, "again", kind, CrashAfter(1))
    for _ in range(2 * STEPS - 1):
        with pytest.raises(CrashError):
            at.resume("again", terms=KINDS[kind]["terms"], progress=CrashAfter(1))
    assert final_state(resumed("again", kind).folder) == expected


@pytest.mark.parametrize("evaluation", range(1, 6))
def test_in_an_evaluation(teacher: Run, evaluation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the validation images after an epoch, of the validation and the test images at the end."""
    kind = "live teacher, own term"
    expected = final_state(distill(teacher, "whole", kind).folder)
    calls = 0
    original = SharedEvaluation.logits

    def crashing(self: SharedEvaluation, *arguments: Any, **settings: Any) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls == evaluation:
            raise CrashError
        return original(self, *arguments, **settings)

    monkeypatch.setattr(SharedEvaluation, "logits", crashing)
    with pytest.raises(CrashError):
        distill(teacher, "crashed", kind)
    assert final_state(resumed("crashed", kind).folder) == expected


def test_inside_a_step(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the forward pass, which has moved batch norm's statistics, and before the update."""
    kind = "live teacher, own term"
    expected = final_state(distill(teacher, "whole", kind).folder)
    original = TrainStep._update_weights
    calls = 0

    def crashing(self: TrainStep, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise CrashError
        return original(self, *arguments)

    monkeypatch.setattr(TrainStep, "_update_weights", crashing)
    with pytest.raises(CrashError):
        distill(teacher, "crashed", kind)
    assert final_state(resumed("crashed", kind).folder) == expected


def test_every_sample_once_an_epoch(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []
    original = TrainStep.step

    def recording(self: TrainStep, batch: Any, targets: Any, index: Any, *wishes: int) -> Any:
        done = original(self, batch, targets, index, *wishes)
        trained.extend((index.epoch, int(sample)) for sample in batch.indices)
        return done

    monkeypatch.setattr(TrainStep, "step", recording)
    kind = "two loader workers"
    with pytest.raises(CrashError):
        distill(teacher, "crashed", kind, CrashAfter(STEPS + 1))
    resumed("crashed", kind)
    epochs, samples = np.array(trained).T
    assert sorted(zip(epochs, samples, strict=True)) == [
        (epoch, sample) for epoch in range(2) for sample in range(48)
    ]
