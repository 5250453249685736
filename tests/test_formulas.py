"""Maps and losses against numpy in float64, finite differences, properties and named edges."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck

from attention_transfer.errors import InputError
from attention_transfer.functional import fused, losses, maps
from attention_transfer.functional.maps import MapKind

KINDS: tuple[MapKind, ...] = ("sum", "max")
POWERS = (0.5, 1, 1.5, 2, 3, 4)
FORMS: tuple[losses.TransferForm, ...] = ("code", "paper", "paper-eq2")
Array = NDArray[np.float64]


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive and negative activations, none near zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (values * signs).to(dtype)


def reference_map(a: Array, kind: str, power: float) -> Array:
    importance = np.abs(a) ** power
    return importance.sum(axis=1) if kind == "sum" else importance.max(axis=1)


def reference_normalized(m: Array) -> Array:
    flat = m.reshape(len(m), -1)
    return flat / np.sqrt((flat**2).sum(axis=1, keepdims=True))


def reference_transfer(student: Array, teacher: Array, form: str, norm: float = 2) -> float:
    difference = reference_normalized(student) - reference_normalized(teacher)
    if form == "code":
        return float((difference**2).mean())
    per_image = (np.abs(difference) ** norm).sum(axis=1) ** (1 / norm) / 2
    return float(per_image.mean() / (1 if form == "paper" else difference.shape[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
def test_maps_are_the_formula(kind: MapKind, power: float) -> None:
    a = features(3, 5, 4, 6)
    expected = reference_map(a.numpy(), kind, power)
    np.testing.assert_allclose(maps.activation_map(a, kind, power).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        maps.normalized_map(a, kind, power).numpy(), reference_normalized(expected), rtol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
def test_gradients_are_those_of_finite_differences(kind: MapKind, power: float) -> None:
    a = features(2, 3, 2, 3).requires_grad_()
    assert gradcheck(lambda x: maps.activation_map(x, kind, power), a)
    assert gradcheck(lambda x: maps.normalized_map(x, kind, power), a)
    assert gradcheck(maps.normalize, features(2, 2, 3).requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (5, 64, 64, 48)])
def test_the_hand_written_gradient_is_autograds(
    kind: MapKind, power: float, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    """The larger shape is worked on in several parts."""
    a = features(*shape).to(memory_format=layout)
    upstream = torch.randn(shape[0], shape[2] * shape[3], dtype=torch.float64)
    gradients = []
    for compute in (
        maps.normalized_map,
        lambda x, k, p: maps.normalize(maps.activation_map(x, k, p)),
    ):
        x = a.clone(memory_format=layout).requires_grad_()
        compute(x, kind, power).backward(upstream)
        assert x.grad is not None
        assert x.grad.is_contiguous(memory_format=layout)
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_channels_share_the_gradient(kind: MapKind) -> None:
    a = torch.tensor([[[[2.0, 1.0]], [[-2.0, 3.0]], [[1.0, 3.0]]]], dtype=torch.float64)
    x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
    maps.normalized_map(x, kind, 2)[:, 0].sum().backward()
    maps.normalize(maps.activation_map(y, kind, 2))[:, 0].sum().backward()
    assert y.grad is not None
    assert y.grad.any()
    torch.testing.assert_close(x.grad, y.grad)


@given(exponent=st.integers(-20, 20), power=st.sampled_from(POWERS), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_normalised_maps_do_not_depend_on_scale_or_order_of_channels(
    exponent: int, power: float, kind: MapKind
) -> None:
    a = features(2, 4, 3, 3, seed=exponent + 20)
    normal = maps.normalized_map(a, kind, power)
    scaled = maps.normalized_map(a * 10.0**exponent, kind, power)
    torch.testing.assert_close(scaled, normal, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maps.normalized_map(a.flip(1), kind, power), normal)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
def test_float32_maps_and_gradients_are_finite_at_any_scale(
    scale: float, kind: MapKind, power: float
) -> None:
    a = features(2, 4, 3, 3)
    small = (a * scale).float().requires_grad_()
    normal = maps.normalized_map(small, kind, power)
    torch.testing.assert_close(
        normal.double(), maps.normalized_map(a, kind, power), rtol=1e-4, atol=1e-6
    )
    normal[:, 0].sum().backward()
    assert small.grad is not None
    assert small.grad.isfinite().all()
    assert small.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [6e-5, 300.0, 60000.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_features_give_float32_maps(
    dtype: torch.dtype, largest: float, autocast: bool
) -> None:
    a = (features(2, 4, 56, 56) * largest / 1.1).to(dtype).to(memory_format=torch.channels_last)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        normal = maps.normalized_map(a)
        loss = fused.attention_transfer(a, torch.ones(2, 56, 56))[0]
    assert normal.dtype == loss.dtype == torch.float32
    expected = reference_normalized(reference_map(a.detach().double().numpy(), "sum", 2))
    np.testing.assert_allclose(normal.detach().numpy(), expected, rtol=1e-4, atol=1e-7)
    loss.backward()
    assert a.grad is not None
    assert a.grad.dtype == dtype
    assert a.grad.is_contiguous(memory_format=torch.channels_last)
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("form", FORMS)
def test_zero_and_constant_maps_have_sound_values_and_gradients(
    kind: MapKind, power: float, form: losses.TransferForm
) -> None:
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert not maps.normalized_map(zero, kind, power).any()
    teacher = maps.activation_map(features(2, 3, 4, 4, dtype=torch.float32))
    fused.attention_transfer(zero, teacher, kind, power, form)[0].backward()
    assert zero.grad is not None
    assert not zero.grad.any()
    constant = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    torch.testing.assert_close(
        maps.normalized_map(constant, kind, power), torch.full((2, 16), 0.25)
    )
    fused.attention_transfer(constant, teacher, kind, power, form)[0].backward()
    assert constant.grad is not None
    assert constant.grad.isfinite().all()


def test_an_all_zero_map_normalises_to_zero_with_zero_gradient() -> None:
    zero = torch.zeros(1, 2, 2, requires_grad=True)
    maps.normalize(zero).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.5, 1, 1.5])
def test_absolute_values_come_before_the_power_and_zero_has_no_gradient(power: float) -> None:
    a = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]], requires_grad=True)
    found = maps.activation_map(a, "sum", power)
    assert found.tolist() == [[[2.0, 0.0]]]
    found.sum().backward()
    assert a.grad is not None
    assert a.grad.flatten().tolist() == [power, 0, -power, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [1, 2, 3])
def test_transfer_is_the_formula(form: losses.TransferForm, norm: float) -> None:
    student, teacher = features(3, 4, 5).abs(), features(3, 4, 5, seed=1).abs()
    value = losses.attention_transfer(student, teacher, form, norm).item()
    assert value == pytest.approx(
        reference_transfer(student.numpy(), teacher.numpy(), form, norm), rel=1e-12
    )
    assert gradcheck(
        lambda s: losses.attention_transfer(s, teacher, form, norm), student.requires_grad_()
    )


@pytest.mark.parametrize("form", FORMS)
def test_transfer_is_zero_at_identity_symmetric_and_a_batch_mean(form: losses.TransferForm) -> None:
    student, teacher = features(4, 3, 5).abs().requires_grad_(), features(4, 3, 5, seed=1).abs()
    same = losses.attention_transfer(student, 7 * student.detach(), form)
    same.backward()
    assert same.item() == pytest.approx(0, abs=1e-15)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e-6 if form == "code" else True
    exact = losses.attention_transfer(student, student.detach(), form)
    student.grad = None
    exact.backward()
    assert not student.grad.any()  # type: ignore[union-attr]
    one = losses.attention_transfer(student, teacher, form)
    torch.testing.assert_close(one, losses.attention_transfer(teacher, student.detach(), form))
    halves = [
        losses.attention_transfer(student[p], teacher[p], form) for p in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(one, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(losses.knowledge_distillation, (6, 5)), (losses.full_activation_transfer, (6, 3, 4, 4))],
)
def test_a_batch_is_the_mean_of_its_halves(
    loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    student, teacher = features(*shape), features(*shape, seed=1)
    halves = (loss(student[:3], teacher[:3]) + loss(student[3:], teacher[3:])) / 2
    torch.testing.assert_close(loss(student, teacher), halves)


def test_the_forms_are_multiples_where_they_should_be() -> None:
    student, teacher = features(3, 4, 5).abs(), features(3, 4, 5, seed=1).abs()
    paper, eq2 = (losses.attention_transfer(student, teacher, f) for f in ("paper", "paper-eq2"))  # type: ignore[arg-type]
    assert eq2.item() == pytest.approx(paper.item() / 20)
    for form in FORMS:
        weight, unit = losses.effective_weight(1000.0, form, (4, 5))
        assert (weight, unit) == {
            "code": (50.0, "||d||^2"),
            "paper": (500.0, "||d||"),
            "paper-eq2": (25.0, "||d||"),
        }[form]


def test_maps_are_pooled_axis_by_axis_before_normalisation() -> None:
    student, teacher = features(2, 4, 6).abs(), features(2, 8, 3, seed=1).abs()
    pooled = student.numpy().reshape(2, 4, 3, 2).mean(axis=3)
    other = teacher.numpy().reshape(2, 4, 2, 3).mean(axis=2)
    value = losses.attention_transfer(student, teacher).item()
    assert value == pytest.approx(reference_transfer(pooled, other, "code"), rel=1e-12)


def test_pooling_features_is_not_pooling_their_map() -> None:
    a, teacher = features(2, 4, 8, 8), features(2, 4, 4, seed=1).abs()
    ours = losses.attention_transfer(maps.activation_map(a), teacher)
    pooled = torch.nn.functional.adaptive_avg_pool2d(a, 4)
    assert ours.item() != pytest.approx(
        losses.attention_transfer(maps.activation_map(pooled), teacher).item(), rel=0.01
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("size", [(7,), (3, 4, 5)])
def test_signals_and_volumes_have_maps_by_the_same_formula(
    kind: MapKind, power: float, size: tuple[int, ...]
) -> None:
    a = features(3, 5, *size)
    expected = reference_map(a.numpy(), kind, power)
    np.testing.assert_allclose(maps.activation_map(a, kind, power).numpy(), expected, rtol=1e-12)
    normal = maps.normalized_map(a, kind, power)
    np.testing.assert_allclose(normal.numpy(), reference_normalized(expected), rtol=1e-12)
    assert gradcheck(lambda x: maps.normalized_map(x, kind, power), a[:1].requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_volumes_and_signals_are_pooled_axis_by_axis(form: losses.TransferForm) -> None:
    student, teacher = features(2, 4, 6, 4).abs(), features(2, 2, 3, 8, seed=1).abs()
    pooled = student.numpy().reshape(2, 2, 2, 3, 2, 4).mean(axis=(2, 4))
    other = teacher.numpy().reshape(2, 2, 3, 4, 2).mean(axis=4)
    value = losses.attention_transfer(student, teacher, form).item()
    assert value == pytest.approx(reference_transfer(pooled, other, form), rel=1e-12)
    signal, longer = features(2, 6).abs(), features(2, 12, seed=1).abs()
    value = losses.attention_transfer(signal, longer, form).item()
    pooled = longer.numpy().reshape(2, 6, 2).mean(axis=2)
    assert value == pytest.approx(reference_transfer(signal.numpy(), pooled, form), rel=1e-12)


def test_whole_activations_of_volumes() -> None:
    student, teacher = features(2, 3, 2, 4, 4), features(2, 3, 2, 2, 4, seed=1)
    pooled = student.numpy().reshape(2, 3, 2, 2, 2, 4).mean(axis=4)
    value = losses.full_activation_transfer(student, teacher).item()
    assert value == pytest.approx(((pooled - teacher.numpy()) ** 2).mean())


def test_distillation_of_every_position_is_the_mean_over_positions() -> None:
    student, teacher = features(2, 5, 3, 4) * 3, features(2, 5, 3, 4, seed=1) * 3
    rows = [z.movedim(1, -1).reshape(-1, 5) for z in (student, teacher)]
    expected = losses.knowledge_distillation(*rows, temperature=2.0)
    value = losses.knowledge_distillation(student, teacher, temperature=2.0)
    torch.testing.assert_close(value, expected)
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    chosen = [z[mask.flatten()] for z in rows]
    masked = losses.knowledge_distillation(student, teacher, 2.0, mask)
    torch.testing.assert_close(masked, losses.knowledge_distillation(*chosen, temperature=2.0))
    assert losses.knowledge_distillation(student, teacher, 2.0, mask & ~mask).item() == 0
    with pytest.raises(ValueError, match="mask must be"):
        losses.knowledge_distillation(student, teacher, 2.0, mask[:, 0])


def test_a_single_position_is_no_broadcast() -> None:
    wide, single = features(3, 4, 4).abs(), features(3, 1, 1).abs()
    assert losses.attention_transfer(wide, single).item() == 0  # both are 1 after normalisation
    assert maps.normalize(single).tolist() == [[1.0]] * 3


@given(temperature=st.floats(0.5, 20))
@settings(max_examples=20, deadline=None)
def test_distillation_is_the_formula(temperature: float) -> None:
    student, teacher = features(4, 7) * 5, features(4, 7, seed=1) * 5

    def softened(z: Array) -> Array:
        e = np.exp(z / temperature - (z / temperature).max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    p, q = softened(teacher.numpy()), softened(student.numpy())
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    value = losses.knowledge_distillation(student, teacher, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert losses.knowledge_distillation(teacher, teacher, temperature).item() == pytest.approx(0)


def test_full_activations() -> None:
    student, teacher = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    expected = ((student - teacher).numpy() ** 2).mean()
    assert losses.full_activation_transfer(student, teacher).item() == pytest.approx(expected)
    smaller = features(2, 3, 2, 4, seed=2)
    pooled = student.numpy().reshape(2, 3, 2, 2, 4).mean(axis=3)
    value = losses.full_activation_transfer(student, smaller).item()
    assert value == pytest.approx(((pooled - smaller.numpy()) ** 2).mean())
    assert gradcheck(
        lambda s: losses.full_activation_transfer(s, teacher), student.requires_grad_()
    )


def test_nothing_flows_to_the_teacher() -> None:
    student = features(2, 4, 3).abs().requires_grad_()
    for loss in (
        lambda t: losses.attention_transfer(student, t),
        lambda t: losses.knowledge_distillation(student[0], t[0]),
        lambda t: losses.full_activation_transfer(student[None], t[None]),
    ):
        teacher = features(2, 4, 3, seed=1).requires_grad_()
        loss(teacher).backward()
        assert teacher.grad is None


def test_a_second_derivative_of_the_fused_map_is_refused() -> None:
    a = features(1, 2, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(maps.normalized_map(a)[:, 0].sum(), a, create_graph=True)
    with pytest.raises(InputError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: maps.activation_map(torch.rand(2, 3)), r"\(N, C, H, W\).* got .*\(2, 3\)"),
        (lambda: maps.activation_map(torch.rand(1, 1, 2, 2), power=0), "power.*above 0, got 0"),
        (lambda: maps.activation_map(torch.rand(1, 1, 2, 2), power=float("inf")), "power"),
        (lambda: maps.normalized_map(torch.rand(1, 1, 2, 2), kind="mean"), "kind"),  # type: ignore[arg-type]
        (lambda: maps.normalize(torch.rand(2)), r"\(N, H, W\)"),
        (lambda: losses.attention_transfer(torch.rand(2, 2, 2), torch.rand(3, 2, 2)), "same N"),
        (lambda: losses.attention_transfer(torch.rand(2, 4), torch.rand(2, 4, 5)), r"\(N, H, W\)"),
        (
            lambda: losses.attention_transfer(torch.rand(2, 2, 2), torch.rand(2, 2, 2), norm=0.5),
            "norm must be at least 1",
        ),
        (
            lambda: losses.attention_transfer(torch.rand(2, 2, 2), torch.rand(2, 2, 2), "eq2"),  # type: ignore[arg-type]
            "form must be one of code, paper, paper-eq2",
        ),
        (lambda: losses.knowledge_distillation(torch.rand(2, 3), torch.rand(2, 4)), "classes"),
        (lambda: losses.knowledge_distillation(torch.rand(2, 3), torch.rand(2, 3), 0), "above 0"),
        (
            lambda: losses.full_activation_transfer(torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)),
            "same N and C",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_integers_are_no_features() -> None:
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        maps.activation_map(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
