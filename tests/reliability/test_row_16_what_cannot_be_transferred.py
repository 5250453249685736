"""Row 16: points that are unknown or never run, losses without a gradient, wrapped networks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import attention_transfer as at
from attention_transfer.config import DistillConfig
from attention_transfer.errors import InputError
from attention_transfer.training import run
from attention_transfer.training.objects import named
from conftest import SMALL, Listening, rectified, small_data

SETTINGS: dict[str, Any] = {**SMALL, "epochs": 1, "batch_size": 16, "probes": 0}
TEACHER = "wrn-10-1@random"


def student() -> nn.Module:
    torch.manual_seed(1)
    return at.models.build("wrn-10-1", 3)


class Inside(nn.Module):
    """A network around another one, which changes how that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = rectified()
        self.unused = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)  # type: ignore[no-any-return]


class DetachedLogits(Inside):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class WithoutGradients(Inside):
    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


class InInferenceMode(Inside):
    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


class DetachedFeatures(Inside):
    """Its last layer learns, and no point before it."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.inner[1](self.inner[0](images))
        return self.inner[2:](features)  # type: ignore[no-any-return]


class NoParameters(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Zero(at.CrossEntropy):
    """Takes the place of the run's own cross-entropy."""


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (student, {"pairs": "gruop1:group1"}, "no point 'gruop1'; did you mean group1"),
        (student, {"pairs": "group1:gruop1"}, "no point 'gruop1'; did you mean group1"),
        (student, {"pairs": "classifier:group1"}, "it has no positions"),
        (Inside, {"pairs": "unused:group1"}, "'unused' gave no output"),
        (lambda: student().requires_grad_(False), {}, "no parameter of the student requires a"),
        (NoParameters, {"attention": "none", "kd_alpha": 0.5}, "student's 'logits' depends on no"),
        (DetachedLogits, {"pairs": "inner.1:group1"}, "student's 'logits' depends on no parameter"),
        (WithoutGradients, {"pairs": "inner.1:group1"}, r"'inner\.1' depends on no parameter"),
        (InInferenceMode, {"pairs": "inner.1:group1"}, r"'inner\.1' depends on no parameter"),
        (DetachedFeatures, {"pairs": "inner.1:group1"}, r"'inner\.1' depends on no parameter"),
        (student, {"beta": 0, "terms": [Zero(0.0)]}, "all weights are 0 .*above 0"),
    ],
)
def test_what_could_not_learn_is_refused_before_anything_is_written(
    network: Callable[[], nn.Module], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        at.distill(
            teacher=TEACHER, student=network(), data=small_data(), out="run", **SETTINGS, **settings
        )
    assert not Path("run").exists()


def test_a_network_alone_that_could_not_learn_is_refused_too() -> None:
    for network in (rectified().requires_grad_(False), DetachedLogits(), NoParameters()):
        with pytest.raises(InputError, match="could not learn"):
            at.train(network, data=small_data(), out="run", **SETTINGS)
    assert not Path("run").exists()


def test_a_last_layer_alone_may_learn_where_no_point_is_compared() -> None:
    finished = at.train(DetachedFeatures(), data=small_data(), out="run", **SETTINGS)
    assert finished.metrics[0].terms["cross_entropy"] > 0


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"beta": 0, "kd_alpha": 0}, ["knowledge_distillation", "activation_attention"]),
        ({"beta_schedule": "linear", "kd_alpha": 1}, []),
        (
            {"attention": "gradient", "gradient_beta": 0, "full_activation_beta": 0},
            ["full_activation", "gradient_attention"],
        ),
        (
            {"flip_symmetry_beta": 0, "input_gradient_norm_beta": 0},
            ["flip_symmetry", "input_gradient_norm"],
        ),
    ],
)
def test_a_term_of_weight_zero_is_told_and_changes_nothing(
    settings: dict[str, Any], names: list[str]
) -> None:
    objects = named(data=small_data(images=16))
    base = {**SETTINGS, **objects[0], "student": "wrn-10-1", "teacher": TEACHER}
    progress = Listening()
    config = DistillConfig.checked({**base, **settings, "out": "run"})
    finished = run(config, progress, objects[1])
    told = [line.split()[2] for line in progress.lines if "has weight 0" in line]
    assert told == names
    for name in names:
        assert {row.terms[name] for row in finished.metrics} == {0.0}
    left = {name for name, value in finished.metrics[0].terms.items() if value}
    if left == {"cross_entropy"}:
        config = DistillConfig.checked({**base, "student": "wrn-10-1", "out": "alone"})
        alone = at.train("wrn-10-1", data=small_data(images=16), out="alone", **SETTINGS)
        weights = [each.folder / "model.safetensors" for each in (finished, alone)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def compiled_before_it_is_tapped() -> nn.Module:
    torch.compiler.reset()
    network: nn.Module = torch.compile(student(), backend="eager")  # type: ignore[assignment]
    network(torch.rand(2, 3, 16, 16))
    return network


def compiled_in_place() -> nn.Module:
    torch.compiler.reset()
    network = student()
    network.compile(backend="eager")
    network(torch.rand(2, 3, 16, 16))
    return network


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, inside Dynamo
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: nn.DataParallel(student()),
        pytest.param(compiled_before_it_is_tapped, marks=pytest.mark.slow),
        pytest.param(compiled_in_place, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_a_wrapped_student_is_that_of_the_student(
    wrapped: Callable[[], nn.Module],
) -> None:
    settings = {**SETTINGS, "data": small_data()}
    plain = at.distill(teacher=TEACHER, student=student(), out="plain", **settings).metrics[0]
    other = at.distill(teacher=TEACHER, student=wrapped(), out="wrapped", **settings).metrics[0]
    assert other.terms == pytest.approx(plain.terms, rel=1e-4)
    assert other.attention_agreement == pytest.approx(plain.attention_agreement, rel=1e-4)


def test_a_student_inside_ddp_has_the_losses_and_gradients_of_the_student(tmp_path: Path) -> None:
    teacher = at.models.build("wrn-16-1", 3)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    terms = [at.CrossEntropy(), at.ActivationAttention()]
    plain, wrapped = student().eval(), student().eval()
    expected = at.Transfer(plain, teacher, terms)(images, labels)
    expected.loss.backward()
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        ddp = nn.parallel.DistributedDataParallel(wrapped)
        out = at.Transfer(ddp, teacher, terms)(images, labels)
        out.loss.backward()
    finally:
        distributed.destroy_process_group()
    assert out.terms == expected.terms
    assert out.terms["activation_attention"] > 0
    for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_shapes_that_do_not_fit_are_refused_before_the_first_step() -> None:
    data = small_data()
    with pytest.raises(InputError, match="has 3 outputs, the data set 2 classes"):
        fewer = dataclasses.replace(
            data,
            class_names=("a", "b"),
            **{
                split: dataclasses.replace(
                    getattr(data, split), labels=getattr(data, split).labels % 2
                )
                for split in ("train", "validation", "test")
            },
        )
        at.distill(teacher=TEACHER, student=student(), data=fewer, out="run", **SETTINGS)
    images = torch.rand(2, 3, 16, 16)
    transfer = at.Transfer(student(), at.models.build("wrn-10-1", 5), [at.KnowledgeDistillation()])
    with pytest.raises(InputError, match=r"same classes.*\(2, 3\).*\(2, 5\)"):
        transfer(images)
    assert not Path("run").exists()
