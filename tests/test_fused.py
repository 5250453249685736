"""The fused pass against the plain functions: values, gradients, extremes, and what it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import fused, kernels, losses, maps
from attention_transfer.functional.maps import MapKind

KINDS: tuple[MapKind, ...] = ("sum", "max")
POWERS = (0.5, 1, 1.5, 2, 3, 4)
FORMS: tuple[losses.TransferForm, ...] = ("code", "paper", "paper-eq2")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def both(
    features: Tensor, teacher: Tensor, *settings: object
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(loss, gradient) of the fused pass, and of the plain functions by autograd."""
    kind, power, form, norm = (*settings, *("sum", 2.0, "code", 2.0)[len(settings) :])
    ours, theirs = (features.detach().clone().requires_grad_() for _ in range(2))
    loss, _ = fused.attention_transfer(ours, teacher, kind, power, form, norm)  # type: ignore[arg-type]
    loss.backward()
    attention = maps.activation_map(theirs, kind, power)  # type: ignore[arg-type]
    plain = losses.attention_transfer(attention, teacher, form, norm)  # type: ignore[arg-type]
    plain.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    return (loss.detach(), ours.grad), (plain.detach(), theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [1, 2, 3, float("inf")])
@pytest.mark.parametrize("size", [(6, 7), (3, 4), (9, 3), (12, 14)])
def test_it_is_the_plain_functions(
    kind: MapKind, power: float, form: losses.TransferForm, norm: float, size: tuple[int, int]
) -> None:
    """Sizes: the same, a smaller teacher, a larger one by an axis, a larger one."""
    teacher = random(5, *size, seed=1).abs()
    ours, plain = both(random(5, 8, 6, 7), teacher, kind, power, form, norm)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("size", "teacher_size"),
    [((9,), (9,)), ((9,), (4,)), ((4,), (9,)), ((3, 4, 5), (3, 4, 5)), ((4, 6, 5), (2, 7, 5))],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_the_plain_functions_of_signals_and_volumes(
    kind: MapKind,
    power: float,
    form: losses.TransferForm,
    size: tuple[int, ...],
    teacher_size: tuple[int, ...],
    channels_last: bool,
) -> None:
    features, teacher = random(3, 8, *size), random(3, *teacher_size, seed=1).abs()
    if channels_last:
        features = features.movedim(1, -1).contiguous().movedim(-1, 1)
    ours, plain = both(features, teacher, kind, power, form)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("power", "channels"), [(1, 64), (2, 64), (2, 16), (2, 5), (4, 16)])
def test_every_dtype_and_memory_format_in_parts(
    layout: torch.memory_format, dtype: torch.dtype, power: float, channels: int
) -> None:
    """Loss and map in float32; the gradient in the features' dtype and format, as exact as that."""
    features = random(5, channels, 48, 48, dtype=dtype).to(memory_format=layout)
    teacher = random(5, 48, 48, seed=1).abs().float()
    (loss, gradient), _ = both(features, teacher, "sum", power)
    _, (plain, exact) = both(features.double(), teacher, "sum", power)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=layout)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-5, atol=0)
    # The gradients are below float16's normal numbers; two roundings of bfloat16 at most.
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    smallest = 2**-24 if dtype == torch.float16 else 1e-12
    torch.testing.assert_close(gradient.double(), exact, rtol=rounding, atol=smallest)


@given(
    exponent=st.integers(-30, 30),
    kind=st.sampled_from(KINDS),
    power=st.sampled_from(POWERS),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=60, deadline=None)
def test_a_student_at_any_scale_has_the_same_loss_and_a_finite_gradient(
    exponent: int, kind: MapKind, power: float, form: losses.TransferForm
) -> None:
    features, teacher = random(3, 4, 5, 5), random(3, 5, 5, seed=1).abs()
    (plain, _), _ = both(features, teacher, kind, power, form)
    scaled = (features * 10.0**exponent).float().requires_grad_()
    loss, attention = fused.attention_transfer(scaled, teacher * 1e30, kind, power, form)
    loss.backward()
    torch.testing.assert_close(loss.detach(), plain.float(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(attention.flatten(1).norm(dim=1), torch.ones(3))
    assert scaled.grad is not None
    assert scaled.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("form", FORMS)
def test_zero_features_and_equal_maps_have_a_gradient_of_zero(
    kind: MapKind, power: float, form: losses.TransferForm
) -> None:
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    zero_loss, _ = fused.attention_transfer(zero, torch.rand(2, 4, 4), kind, power, form)
    features = random(2, 3, 4, 4).requires_grad_()
    own, _ = kernels.scaled_map(features.detach(), kind, power)
    equal_loss, _ = fused.attention_transfer(features, own, kind, power, form)
    (zero_loss + equal_loss).backward()
    assert zero.grad is not None
    assert features.grad is not None
    assert not zero.grad.any()
    assert features.grad.abs().max() < 1e-12


def test_one_zero_image_among_others_changes_nothing_for_them() -> None:
    features, teacher = random(3, 4, 5, 5), random(3, 5, 5, seed=1).abs()
    features[1] = 0
    ours, plain = both(features, teacher)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_keeps_the_features_and_a_number_for_each_position(layout: torch.memory_format) -> None:
    features = random(8, 64, 32, 32, dtype=torch.bfloat16).to(memory_format=layout).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused.attention_transfer(features, torch.rand(8, 32, 32))
    others = [tensor for tensor in kept if tensor.data_ptr() != features.data_ptr()]
    assert len(others) == len(kept) - 1
    assert sum(tensor.nbytes for tensor in others) < 0.04 * features.nbytes


def test_autocast_around_it_changes_nothing() -> None:
    features = random(3, 4, 5, 5, dtype=torch.float32)
    teacher = random(3, 5, 5, seed=1, dtype=torch.float32).abs()
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = both(features, teacher)
    ours, _ = both(features, teacher)
    torch.testing.assert_close(under, ours, rtol=0, atol=0)


def test_there_is_no_second_derivative_and_that_is_said() -> None:
    features = random(2, 3, 4, 4).requires_grad_()
    loss, _ = fused.attention_transfer(features, torch.rand(2, 4, 4))
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(InputError, match="no second derivative"):
        (gradient.sum() + features.square().sum()).backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_map": torch.rand(2, 4, 4)}, "of the features' N images"),
        ({"teacher_map": torch.rand(3, 16)}, r"\(N, H, W\)"),
        ({"kind": "mean"}, "kind"),
        ({"power": 0.0}, "power"),
        ({"form": "article"}, "form"),
        ({"norm": 0.5}, "norm"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given = {"features": torch.rand(3, 2, 4, 4), "teacher_map": torch.rand(3, 4, 4), **change}
    with pytest.raises(ValueError, match=message):
        fused.attention_transfer(**given)  # type: ignore[arg-type]


def test_the_compiled_kernels_are_the_functions() -> None:
    """Those of graphics processors, compiled for this one."""
    features, upstream = random(3, 8, 6, 5), random(3, 6, 5, seed=1)
    attention, divisors = kernels.FUSED_MAP(features, "sum", 2.0)
    torch.testing.assert_close(
        attention * divisors.flatten(1).unsqueeze(2).square(), maps.activation_map(features)
    )
    scale = torch.tensor(0.3, dtype=torch.float64)
    gradient = kernels.FUSED_GRADIENT(features, divisors, upstream, "sum", 2.0, scale)
    expected = 0.6 * features * upstream.unsqueeze(1) / divisors.square()
    torch.testing.assert_close(gradient, expected)


def test_a_kernel_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no compiler")

    kernel = kernels.Kernel(lambda values: values * 2)
    monkeypatch.setattr(kernel, "_compiled", broken)
    with caplog.at_level("INFO"):
        assert kernel(torch.ones(2)).tolist() == [2, 2]
        assert kernel(torch.ones(2)).tolist() == [2, 2]
    assert [record.message for record in caplog.records] == [
        "<lambda> runs uncompiled: no compiler"
    ]
