"""Double backward against autograd's own, and against finite differences."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from attention_transfer.double_backward import DoubleBackward, batch_norm


class Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.inner(features)


class Dense(Residual):
    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.inner(features)], dim=1)


class Tokens(nn.Module):
    """Channels last, one token a position."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.inner(features.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape_as(features)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        attended: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return attended


class ScaledDotProduct(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)


def conv(channels: int = 4, **settings: Any) -> nn.Module:
    return nn.Conv2d(4, channels, 3, padding=1, **settings)


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Tanh()),
    "batch norm without weight": lambda: nn.BatchNorm2d(4, affine=False),
    "batch norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "two batch norms": lambda: nn.Sequential(nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)),
    "layer norm": lambda: nn.Sequential(Tokens(nn.LayerNorm(4)), nn.Tanh()),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "attention": lambda: Residual(Tokens(SelfAttention())),
    "scaled dot product": lambda: Tokens(ScaledDotProduct()),
    "dropout": lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5), conv()),
    "channel dropout": lambda: nn.Sequential(nn.Tanh(), nn.Dropout2d(0.5), conv()),
    "stochastic depth": lambda: Residual(conv(), nn.Tanh(), StochasticDepth(0.5, "row")),
    "max pooling": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "average pooling": lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Tanh()),
    "residual": lambda: Residual(nn.BatchNorm2d(4), nn.ReLU(), conv()),
    "dense": lambda: nn.Sequential(Dense(nn.BatchNorm2d(4), nn.ReLU(), conv()), nn.Conv2d(8, 4, 1)),
    "strided": lambda: nn.Sequential(conv(stride=2), nn.Upsample(scale_factor=2), nn.Tanh()),
    "dilated": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Tanh()),
    "depthwise": lambda: nn.Sequential(conv(groups=4, bias=False), nn.Tanh()),
    "same padding": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Tanh()),
    "reflected": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, padding=1), nn.Tanh()),
}


def build(middle: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    head = [nn.Flatten(), nn.Linear(4 * 36, 3)]
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), MIDDLES[middle](), *head)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.double()


def value(network: nn.Module, images: Tensor, ours: bool) -> Tensor:
    """A function of the loss's gradient at the images, plus the loss."""
    torch.manual_seed(1)
    labels = torch.arange(len(images)) % 3
    images = images.clone().requires_grad_()
    if not ours:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = functional.cross_entropy(network(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    else:
        with DoubleBackward() as double:
            loss = functional.cross_entropy(network(images), labels, reduction="sum")
        gradient = double.gradient(loss, images)
    target = torch.linspace(-1, 1, gradient.numel(), dtype=gradient.dtype).view_as(gradient)
    return (gradient - target).square().sum() + loss


def weight_gradients(network: nn.Module, images: Tensor, ours: bool) -> dict[str, Tensor]:
    network.zero_grad()
    value(network, images, ours).backward()
    return {
        name: weight.grad.clone()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }


def images_for(layout: torch.memory_format) -> Tensor:
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.manual_seed(7))
    return images.to(memory_format=layout)


@pytest.fixture(params=["in passes", "fused"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula in PyTorch's passes, and as it is handed to the compiler."""
    if request.param == "fused":
        monkeypatch.setattr(batch_norm, "_LARGE", 0)
        uncompiled = batch_norm._means, batch_norm._derivatives
        monkeypatch.setattr(batch_norm, "_compiled", lambda: uncompiled)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("middle", MIDDLES)
def test_weight_gradients_are_autograds(
    middle: str, layout: torch.memory_format, training: bool
) -> None:
    network = build(middle).to(memory_format=layout).train(training)
    images = images_for(layout)
    ours, autograds = (weight_gradients(network, images, ours) for ours in (True, False))
    assert ours.keys() == autograds.keys() == dict(network.named_parameters()).keys()
    for name, expected in autograds.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("middle", MIDDLES)
def test_weight_gradients_are_finite_differences(middle: str) -> None:
    network, images = build(middle).train(), images_for(torch.contiguous_format)
    gradients = weight_gradients(network, images, ours=True)
    generator, step = torch.Generator().manual_seed(3), 1e-6
    direction = {
        name: torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        for name, weight in network.named_parameters()
    }
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight += sign * step * direction[name]
        values.append(value(network, images, ours=True).item())
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight -= sign * step * direction[name]
    slope = sum((gradients[name] * direction[name]).sum() for name in gradients)
    torch.testing.assert_close(
        (values[0] - values[1]) / (2 * step), float(slope), rtol=1e-5, atol=0
    )


def test_running_statistics_move_as_without() -> None:
    images = images_for(torch.contiguous_format)
    networks = [build("two batch norms") for _ in range(2)]
    for network, context in zip(networks, (nullcontext(), DoubleBackward()), strict=True):
        with context:
            network(images)
    states = [network.state_dict() for network in networks]
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected)
    assert states[1]["2.0.num_batches_tracked"] == 1


def test_a_batch_norm_with_zero_weight_is_exact() -> None:
    network, images = build("batch norm"), images_for(torch.contiguous_format)
    nn.init.zeros_(network[2][0].weight)
    ours, autograds = (weight_gradients(network, images, ours) for ours in (True, False))
    for name, expected in autograds.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-12)


def test_weights_cannot_be_differentiated_twice_and_it_is_said() -> None:
    network, images = build("batch norm"), images_for(torch.contiguous_format)
    with DoubleBackward():
        loss = network(images.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="only the gradient at the input"):
        loss.backward(create_graph=True)


def test_the_compiled_formula_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a compiler is found, as on most machines; elsewhere both are the same."""
    network, images = build("batch norm"), images_for(torch.channels_last)
    plain = weight_gradients(network, images, ours=True)
    monkeypatch.setattr(batch_norm, "_LARGE", 0)
    for name, gradient in weight_gradients(network, images, ours=True).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-9, atol=1e-12)


def test_without_a_compiler_it_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object, **__: object) -> Any:
        raise RuntimeError("No working C++ compiler found")

    network, images = build("batch norm"), images_for(torch.channels_last)
    plain = weight_gradients(network, images, ours=True)
    batch_norm._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(batch_norm, "_LARGE", 0)
    with caplog.at_level("INFO"):
        again = weight_gradients(network, images, ours=True)
    batch_norm._compiled.cache_clear()
    assert "No working C++ compiler" in caplog.text
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float32(lowered: torch.dtype) -> None:
    network = build("two batch norms").float()
    images = images_for(torch.channels_last).float()
    exact = weight_gradients(network, images, ours=True)
    with torch.autocast("cpu", lowered):
        rough = weight_gradients(network, images, ours=True)
    for name, expected in exact.items():
        if expected.norm() > 1e-4:
            assert (rough[name] - expected).norm() < 0.1 * expected.norm(), name
