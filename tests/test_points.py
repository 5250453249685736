"""Every place where attention can be read is found, read rightly or named with the reason."""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.models import ModelCard
from attention_transfer.taps import PointTable, Taps, attention_points

RESNET = ["layer1", "layer2", "layer3", "layer4"]
STAGES = ["stages.0", "stages.1", "stages.2", "stages.3"]
LAYERS = ["layers.0", "layers.1", "layers.2", "layers.3"]
QUARTERS = ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
FAMILIES: dict[str, tuple[int, list[str], str, int]] = {
    # name: image size, recommended points, axes of the last, tokens that stand for no place
    "resnet50": (224, RESNET, "NCHW", 0),
    "resnetv2_50": (224, STAGES, "NCHW", 0),
    "regnety_008": (224, ["stem", "s1", "s2", "s3", "s4"], "NCHW", 0),
    "convnext_tiny": (224, STAGES, "NCHW", 0),
    "efficientnet_b0": (224, [f"blocks.{i}" for i in (0, 1, 2, 4, 6)], "NCHW", 0),
    "mobilenetv3_small_100": (224, [f"blocks.{i}" for i in (0, 1, 3, 5)], "NCHW", 0),
    "densenet121": (224, [f"features.denseblock{i}" for i in (1, 2, 3, 4)], "NCHW", 0),
    "vgg11": (224, [f"features.{i}" for i in (1, 4, 9, 14, 19, 20)], "NCHW", 0),
    "swin_tiny_patch4_window7_224": (224, LAYERS, "NHWC", 0),
    "swinv2_tiny_window8_256": (256, LAYERS, "NHWC", 0),
    "vit_tiny_patch16_224": (224, QUARTERS, "NLC", 1),
    "deit_tiny_patch16_224": (224, QUARTERS, "NLC", 1),
    "deit_tiny_distilled_patch16_224": (224, QUARTERS, "NLC", 2),
    "vit_small_patch14_reg4_dinov2": (518, QUARTERS, "NLC", 5),
    "eva02_tiny_patch14_224": (224, QUARTERS, "NLC", 1),
    "beit_base_patch16_224": (224, QUARTERS, "NLC", 1),
    "cait_xxs24_224": (224, [f"blocks.{i}" for i in (5, 11, 17, 23)], "NLC", 0),
    "mixer_s32_224": (224, [f"blocks.{i}" for i in (1, 3, 5, 7)], "NLC", 0),
    "convmixer_768_32": (224, [f"blocks.{i}" for i in (7, 15, 23, 31)], "NCHW", 0),
    "levit_128s": (224, [*(f"stem.conv{i}" for i in (1, 2, 3)), *STAGES[:3]], "NLC", 0),
    "maxvit_tiny_tf_224": (224, ["stem", *STAGES], "NCHW", 0),
    "mobilevit_xs": (256, [*STAGES, "final_conv"], "NCHW", 0),
    "poolformer_s12": (224, STAGES, "NCHW", 0),
    "pvt_v2_b0": (224, STAGES, "NCHW", 0),
    "mvitv2_tiny": (224, [f"stages.{i}#0" for i in range(4)], "NLC", 0),
    "edgenext_xx_small": (256, STAGES, "NCHW", 0),
    "torchvision:resnet18": (224, RESNET, "NCHW", 0),
    "torchvision:mobilenet_v2": (224, [f"features.{i}" for i in (1, 3, 6, 13, 18)], "NCHW", 0),
    "torchvision:shufflenet_v2_x0_5": (224, ["conv1", "stage2", "stage3", "conv5"], "NCHW", 0),
    "torchvision:squeezenet1_1": (224, [f"features.{i}" for i in (4, 7, 12)], "NCHW", 0),
    "torchvision:inception_v3": (
        299,
        ["Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"],
        "NCHW",
        0,
    ),
    "torchvision:swin_t": (224, [f"features.{i}" for i in (1, 3, 5, 7)], "NHWC", 0),
    "torchvision:vit_b_16": (
        224,
        [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)],
        "NLC",
        1,
    ),
}


def build(name: str, **options: Any) -> nn.Module:
    source, _, rest = name.rpartition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source:
            return torchvision.models.get_model(rest, weights=None, **options)  # type: ignore[no-any-return]
        return timm.create_model(rest, pretrained=False, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_of_many_families_are_found(name: str) -> None:
    size, recommended, axes, extra = FAMILIES[name]
    try:
        with torch.device("meta"):
            network = build(name)
    except NotImplementedError:  # what this network computes as it is built, PyTorch lacks there
        network = build(name)
    table = attention_points(network, (3, size, size))
    assert [point.name for point in table.recommended] == recommended
    last = table.recommended[-1]
    assert (last.layout.axes, last.layout.extra_tokens) == (axes, extra)
    assert last.depth > 0.7
    depths = [point.depth for point in table]
    assert depths == sorted(depths)
    assert table.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_100", "convnext_tiny", "vgg11"]
)
def test_every_stage_is_one_that_timm_knows(name: str) -> None:
    """timm declares each network's stages, with channels and reduction."""
    network = build(name)
    known = {
        (info["num_chs"], info["reduction"])
        for info in network.feature_info  # type: ignore[union-attr]
    }
    for point in attention_points(network, (3, 224, 224)).recommended:
        assert (point.channels, round(point.stride[0])) in known


class Positions(nn.Module):
    """Tokens whose only value is their place in the grid, after extra ones of -1."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra
        self.embed = nn.Conv2d(3, 1, 4, stride=4)
        self.block = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        grid = self.embed(images)
        places = torch.arange(grid[0].numel(), dtype=grid.dtype).view(1, -1, 1)
        tokens = grid.flatten(2).transpose(1, 2).detach() * 0 + places
        extra = torch.full((len(images), self.extra, 1), -1.0)
        self.block(torch.cat([extra, tokens], dim=1))
        return tokens.mean(1)


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (20, 64)])
def test_tokens_are_put_where_they_came_from(extra: int, size: tuple[int, int]) -> None:
    images = torch.zeros(2, 3, *size)
    taps = Taps(Positions(extra), ["block"])
    with taps as outputs:
        taps._network(images)
    (places,) = taps.feature_maps(outputs, images).values()
    height, width = size[0] // 4, size[1] // 4
    expected = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    assert torch.equal(places, expected.expand(2, -1, -1, -1))


def channels_last_and_first(axes: str) -> tuple[nn.Module, tuple[str, str]]:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            features = self.conv(images)
            if axes == "NHWC":
                self.other(features.movedim(1, -1).clone())
            else:
                tokens = features.flatten(2)
                self.other(tokens if axes == "NCL" else tokens.transpose(1, 2).clone())
            return features.mean((2, 3))  # type: ignore[no-any-return]

    return Both(), ("conv", "other")


@pytest.mark.parametrize("axes", ["NHWC", "NLC", "NCL"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_other_layouts_give_the_same_map(axes: str, size: tuple[int, int]) -> None:
    network, points = channels_last_and_first(axes)
    maps = at.attention_maps(network, torch.rand(2, 3, *size), points)
    assert torch.equal(maps["conv"], maps["other"])
    assert attention_points(network, (3, *size))["other"].layout.axes == axes


class Odd(nn.Module):
    """All that is not one plain feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(3, 4, 3, padding=1)
        self.early = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.twice = nn.ReLU()
        self.named = Named()
        self.unused = nn.Conv2d(3, 3, 1)
        self.weights = nn.Softmax(dim=-1)
        self.flat = nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        features = self.twice(self.twice(self.late(self.early(images))))
        pooled, _ = self.pool(features)
        tokens = pooled.flatten(2).transpose(1, 2)
        self.weights((tokens @ tokens.transpose(1, 2)).unsqueeze(1))
        return self.flat(self.named(pooled)["out"].mean((2, 3)))  # type: ignore[no-any-return]


class Named(nn.Module):
    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return OrderedDict(out=features + 1, aux=features[:, 0, 0])


def reasons(table: PointTable) -> dict[str, str]:
    return {found.name: found.reason for found in table.unreadable}


def test_points_come_in_the_order_of_execution_and_the_rest_with_its_reason() -> None:
    table = attention_points(Odd(), (3, 16, 16))
    assert [point.name for point in table] == ["early", "late", "pool#0", "named#out"]
    found = reasons(table)
    assert "runs 2 times" in found["twice"]
    assert "int64" in found["pool#1"]
    assert "did not run" in found["unused"]
    assert "no positions" in found["flat"]
    assert "weights" in found
    with pytest.raises(InputError, match=r"'twice' \(ReLU\) has no attention map: it runs 2 times"):
        table["twice"]
    with pytest.raises(InputError, match="did you mean early"):
        table["eary"]


def test_one_of_several_outputs_is_tapped_by_its_key() -> None:
    network, images = Odd(), torch.rand(2, 3, 16, 16)
    maps = at.attention_maps(network, images, ["pool#0", "named#out"], power=1)
    assert maps["pool#0"].shape == (2, 8, 8)
    assert torch.allclose(maps["named#out"], maps["pool#0"] + 4)


def test_an_in_place_layer_makes_a_place_of_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Identity())
    table = attention_points(network, (3, 8, 8))
    assert [(point.name, point.aliases) for point in table] == [("0", ()), ("1", ("2",))]


class Remembering(nn.Module):
    """Keeps a tensor from its pass, and counts passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.kept: Tensor | None = None
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.kept = self.norm(self.conv(images))
        self.passes += 1
        return self.kept.mean((2, 3))


def test_the_network_does_not_notice() -> None:
    network = Remembering()
    fired: list[object] = []
    network.conv.register_forward_hook(lambda *_: fired.append(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attention_points(network, (3, 8, 8))
    assert network.kept is None
    assert (network.passes, fired, network.training) == (0, [], True)
    assert [len(module._forward_hooks) for module in network.modules()] == [0, 1, 0]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network(torch.rand(2, 3, 8, 8))
    kept = network.kept
    attention_points(network, (3, 8, 8))
    assert network.kept is kept
    assert network.passes == 1


class Looking(nn.Module):
    """Decides by what it sees, which fake tensors cannot show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv(images)
        return features.mean((2, 3)) if features.sum().item() > 0 else features.amax((2, 3))


def test_a_network_that_looks_at_values_is_run_for_real() -> None:
    assert attention_points(Looking(), (3, 8, 8))["conv"].stride == (2, 2)


def test_images_that_a_network_does_not_take_are_said() -> None:
    with pytest.raises(
        InputError, match=r"does not run on an input of shape \(3, 1, 8, 8\): .*input size"
    ):
        attention_points(Looking(), (1, 8, 8))


def test_tokens_in_another_order_are_not_read() -> None:
    with torch.device("meta"):
        network = build("hiera_tiny_224")
    table = attention_points(network, (3, 224, 224))
    assert "an order other" in reasons(table)["blocks.3"]
    assert {point.name for point in table} == {"patch_embed", "patch_embed.proj"}


def test_a_network_says_its_own_points() -> None:
    table = attention_points(at.models.build("wrn-10-1", classes=10), (3, 32, 32))
    assert [point.name for point in table.recommended] == ["group1", "group2", "group3"]
    assert [(point.channels, point.height) for point in table.recommended] == [
        (16, 32),
        (32, 16),
        (64, 8),
    ]


SIZED = {
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "vit_small_patch14_reg4_dinov2": 56,
    "eva02_tiny_patch14_224": 56,
    "beit_base_patch16_224": 64,
    "cait_xxs24_224": 64,
    "mixer_s32_224": 96,
    "levit_128s": 224,
    "maxvit_tiny_tf_224": 64,
    "mvitv2_tiny": 64,
    "torchvision:inception_v3": 128,
    "torchvision:vit_b_16": 64,
    "convmixer_768_32": 32,
}
"""Image sizes to train at; 64 where nothing is said."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_attention_transfer_lowers_the_loss(name: str) -> None:
    """A small step down the student's gradient, which is the only one there is."""
    torch.manual_seed(0)
    size = SIZED.get(name, 64)
    loaded = at.models.build(name if ":" in name else f"timm:{name}", 5, (size, size))
    teacher = at.models.build("timm:resnet10t", 5)
    images = torch.rand(4, 3, size, size)
    transfer = at.Transfer(
        loaded.eval(), teacher, [at.ActivationAttention(1000.0)], example_input=images[:1]
    )
    out = transfer(images)
    out.loss.backward()
    table = attention_points(loaded, (3, size, size))
    for pair, (ours, theirs) in out.maps["activation_attention"].items():
        point = table[pair.partition(":")[0]]
        assert ours.shape == (4, point.height, point.width)
        assert theirs.shape[0] == 4
    assert all(parameter.grad is None for parameter in teacher.parameters())
    moved = [parameter for parameter in loaded.parameters() if parameter.grad is not None]
    slope = sum(float(parameter.grad.square().sum()) for parameter in moved)  # type: ignore[union-attr]
    assert slope > 0
    with torch.no_grad():
        for parameter in moved:
            parameter -= 0.02 * out.loss / slope * parameter.grad  # type: ignore[operator]
        assert transfer(images).loss < out.loss


def test_the_command_shows_the_pairs_and_recommended_points_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["points", "timm:resnet18", "--pair", "wrn-16-2", "--image-size=64"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.index("attends like") < text.index("GFLOPs")
    assert "* layer1" in text
    assert "  layer1.0.conv1" not in text
    assert " further points: --all" in text
    assert text.count("on 3x64x64 images") == 2
    assert main([*arguments, "--all"]) == 0
    every = capsys.readouterr().out
    assert "  layer1.0.conv1" in every
    assert "--all" not in every


def test_networks_beside_a_run_get_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a", "b")
    card = ModelCard("wrn-10-1", names, (3, 24, 24), (0.5,) * 3, (0.2,) * 3, "tiny")
    card.write(tmp_path / "model.json")
    assert main(["points", "timm:resnet18", "--pair", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("on 3x24x24 images") == 2
