"""Features of every scale in every precision: finite values and gradients, and the right ones."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import attention_transfer as at
from attention_transfer.errors import TrainingError
from attention_transfer.functional import fused, losses, maps, measures
from attention_transfer.runs import Run
from conftest import SMALL

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMS = ["code", "paper", "paper-eq2"]
TEACHER = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))


def features_at(scale: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Features of a largest magnitude near the scale, as far as the dtype has such numbers."""
    values = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) - 0.5
    most = torch.finfo(dtype).max
    return (values.double() * scale).clamp(-most, most).to(dtype)


scales = st.one_of(
    st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e-7, 1.0, 1e4, 1e30, 3e38]),
    st.floats(-50, 38).map(lambda exponent: 10.0**exponent),
)


def gradient(value: Tensor, tensor: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), tensor)[0]


@given(
    scale=scales,
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["sum", "max"]),
    power=st.sampled_from([0.5, 1, 1.5, 2, 3, 8]),
    form=st.sampled_from(FORMS),
)
def test_the_loss_and_its_gradient_are_those_of_float64(
    scale: float, dtype: torch.dtype, kind: Any, power: float, form: Any
) -> None:
    """The oracle: the formula in float64, of features brought to a scale of one."""
    features = features_at(scale, dtype).requires_grad_()
    loss, _ = fused.attention_transfer(features, TEACHER, kind, power, form)
    found = gradient(loss, features)
    assert loss.isfinite()
    assert found.isfinite().all()
    largest = float(features.detach().double().abs().max()) or 1.0
    whole = (features.detach().double() / largest).requires_grad_()
    student = maps.activation_map(whole, kind, power)
    expected = losses.attention_transfer(student, TEACHER.double(), form)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)
    slope = gradient(expected, whole) / largest
    info = torch.finfo(dtype)
    if power >= 1 and largest > 10 * power * info.tiny and slope.abs().max() < info.max:
        error = (found.double() - slope).abs().max()
        assert error <= 0.02 * slope.abs().max() + 2 * info.smallest_normal


@given(scale=scales, dtype=st.sampled_from(DTYPES), form=st.sampled_from(FORMS))
def test_plain_maps_and_measures_have_finite_values_and_gradients(
    scale: float, dtype: torch.dtype, form: Any
) -> None:
    values = features_at(scale, dtype)[:, 0].abs().requires_grad_()
    upstream = torch.linspace(-1, 1, 16, dtype=torch.float64)
    for result in (
        maps.normalize(values) * upstream,
        losses.attention_transfer(values, TEACHER, form),
        measures.cosine(values, TEACHER),
        measures.entropy(values),
        measures.energy_pointing_game(values, TEACHER),
        losses.half_l2_norm(values / 16),  # a norm of values near the largest number has none
    ):
        assert result.isfinite().all()
        assert gradient(result, values).isfinite().all()
    assert measures.rank_correlation(values, TEACHER).isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_the_norm_of_an_input_gradient_is_right_at_any_scale(scale: float) -> None:
    difference = (torch.tensor([[3.0, 4.0]]) * scale).requires_grad_()
    norm = losses.half_l2_norm(difference)
    assert norm.item() == pytest.approx(2.5 * scale, rel=1e-6)
    assert torch.allclose(gradient(norm, difference), torch.tensor([[0.3, 0.4]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_give_no_number_and_spare_the_other_images(
    value: float,
) -> None:
    features = torch.rand(2, 3, 4, 4)
    expected = maps.normalized_map(features)[1]
    features[0, 0, 0, 0] = value
    found = maps.normalized_map(features)
    assert found[0].isnan().any()
    assert torch.allclose(found[1], expected)
    assert not fused.attention_transfer(features, TEACHER[:2])[0].isfinite()


class Half(torch.nn.Module):
    """A network whose features are of a given scale, in float16."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(4, 3)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images) * self.scale
        return self.head(features.mean((2, 3)))


def test_float16_features_of_1e_7_give_a_gradient() -> None:
    network = Half(1e-7).half()
    transfer = at.Transfer(
        network, Half(1.0).half(), [at.ActivationAttention(pairs=[("conv", "conv")])]
    )
    out = transfer(torch.rand(2, 3, 8, 8).half())
    out.loss.backward()
    assert out.loss.isfinite()
    assert network.conv.weight.grad is not None
    assert network.conv.weight.grad.isfinite().all()


def exploding(num_classes: int = 3) -> torch.nn.Module:
    """A network with infinite features."""
    return torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(3, 4, 3),
            blown=Times(float("inf")),
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flat=torch.nn.Flatten(),
            head=torch.nn.Linear(4, num_classes),
        )
    )


class Times(torch.nn.Module):
    """Features times a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, features: Tensor) -> Tensor:
        return features * self.number


def test_the_error_of_a_run_names_the_point(teacher: Run, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"the loss \(cross_entropy, activation_attention of the student's blown\) is not "
        r"finite in epoch 1, step 1, with the images",
    ):
        at.distill(
            teacher=teacher,
            student=exploding(),
            pairs="blown:group1",
            out=tmp_path / "run",
            **{**SMALL, "lr": 0.01},
        )
