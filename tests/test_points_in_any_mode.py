"""Points and operations are the same on fake tensors, in memory, and in any mode."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.taps import attention_points, counting_flops, to_channels_last
from attention_transfer.training.setup import count_flops
from small_transfers import wide_resnet

WIDTH, HEADS, HIDDEN, LAYERS, TOKENS = 32, 4, 64, 4, 64


class Encoder(nn.Module):
    """Tokens of 4x4 pixels through torch's own encoder, the last of them masked."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.masked = masked
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=masked)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Any:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        mask = None
        if self.masked:
            mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            mask[:, 60:] = True
        return self.head(self.encoder(tokens, src_key_padding_mask=mask)[:, :60].mean(1))


class Attention(nn.Module):
    """One attention layer over tokens of 4x4 pixels."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.fused = fused

    def forward(self, images: Tensor) -> Any:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(1)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    """A recurrent layer over tokens of 4x4 pixels, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.recurrent = nn.LSTM(WIDTH, 16, batch_first=True, bidirectional=True)

    def forward(self, images: Tensor) -> Any:
        return self.recurrent(self.embed(images).flatten(2).transpose(1, 2))[0].mean(1)


EMBED = 2 * TOKENS * (3 * 4 * 4) * WIDTH
PRODUCTS = 2 * 2 * TOKENS * TOKENS * WIDTH
"""Queries by keys, and weights by values."""
PROJECTIONS = 4 * 2 * TOKENS * WIDTH * WIDTH
PERCEPTRON = 2 * 2 * TOKENS * WIDTH * HIDDEN
ENCODER = EMBED + LAYERS * (PRODUCTS + PROJECTIONS + PERCEPTRON) + 2 * WIDTH * 5
FLOPS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "attention": (Attention, EMBED + PRODUCTS + PROJECTIONS),
    "fused": (lambda: Attention(fused=True), EMBED + PRODUCTS),
    "encoder": (Encoder, ENCODER),
    "nested": (lambda: Encoder(masked=True), ENCODER),
    "recurrent": (Recurrent, EMBED + 2 * (2 * TOKENS * 4 * 16 * (WIDTH + 16))),
}


@pytest.mark.parametrize("name", FLOPS)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_operations_are_those_counted_by_hand(name: str, train: bool, gradients: bool) -> None:
    build, expected = FLOPS[name]
    network = build().train(train)
    with torch.set_grad_enabled(gradients):
        assert attention_points(network, (3, 32, 32)).flops == expected
        assert count_flops(network, (3, 32, 32)) == expected
        with counting_flops() as counter:
            network(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() == expected
    assert attention_points(build().to("meta"), (3, 32, 32)).flops == expected


SIZE = (3, 96, 96)
LARGE: dict[str, Callable[[], nn.Module]] = {
    "vit_b_32": lambda: torchvision.models.vit_b_32(weights=None, image_size=96),
    "deit_tiny": lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=96),
    "mobilevit_xxs": lambda: timm.create_model("mobilevit_xxs"),
}


@pytest.mark.parametrize("name", LARGE)
def test_points_in_memory_are_those_on_fake_tensors(name: str) -> None:
    with torch.device("meta"):
        expected = attention_points(LARGE[name](), SIZE)
    network = LARGE[name]()
    for train in (True, False):
        table = attention_points(network.train(train), SIZE)
        assert (table.points, table.flops) == (expected.points, expected.flops)
    assert count_flops(network, SIZE) == expected.flops
    points = [point.name for point in expected.recommended]
    images = torch.rand(1, *SIZE)
    assert list(at.attention_maps(network, images)) == points
    teacher = at.models.build("wrn-10-1", classes=1000)
    term = at.ActivationAttention(pairs="auto")
    transfer = at.Transfer(network, teacher, [term], example_input=images)
    paired = [pair.student for pair in transfer.pairings["activation_attention"].pairs]
    assert paired
    assert set(paired) <= set(points)


@pytest.mark.parametrize("point", ["encoder", "encoder.layers.1", "encoder.layers.1.linear1"])
def test_maps_of_packed_tokens_are_those_of_training(point: str) -> None:
    network = Encoder(masked=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = at.attention_maps(network, images, [point])[point]
    transfer = at.Transfer(network, wide_resnet(2), [at.ActivationAttention(pairs=f"{point}:stem")])
    (pair,) = transfer(images).maps["activation_attention"].values()
    normalized = [at.maps.normalize(one) for one in (maps, pair.student)]
    assert torch.allclose(*normalized, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_one_dimensional_convolutions_are_no_tokens() -> None:
    class Convolving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.along = nn.Conv2d(3, 8, 4, 4), nn.Conv1d(8, 4, 3)
            self.norm, self.activation = nn.BatchNorm1d(4), nn.ReLU()

        def forward(self, images: Tensor) -> Any:
            features = self.along(self.embed(images).flatten(2))
            return self.activation(self.norm(features)).mean(2)

    table = attention_points(Convolving(), (3, 64, 64))
    assert [point.name for point in table] == ["embed"]
    assert {one.name for one in table.unreadable} == {"along", "norm", "activation"}


def test_channels_last_beside_three_dimensional_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(4, 4, 3))
    to_channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
