"""Users' networks: what could silently be read, trained or saved wrongly."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import DistillConfig
from attention_transfer.errors import InputError
from attention_transfer.models.heads import replace_head
from attention_transfer.training.setup import set_up_run

MODULE = '''
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, images):
        return self.classifier(self.second(self.first(images)).mean((2, 3)))


class Twice(Small):
    """A network that holds its modules under two names."""

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        self.stages = nn.ModuleList([self.first, self.second])

    def forward(self, images):
        for stage in self.stages:
            images = stage(images)
        return self.classifier(images.mean((2, 3)))


class Lazy(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.first = nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.LazyConv2d(12, 3, 2, 1), nn.ReLU())
        self.classifier = nn.LazyLinear(num_classes)

    forward = Small.forward


class Fixed(Small):
    """A network for 32x32 images only."""

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        self.classifier = nn.Linear(12 * 64, num_classes)

    def forward(self, images):
        return self.classifier(self.second(self.first(images)).flatten(1))


class Notes(Small):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


class Looks(Small):
    def forward(self, images):
        return super().forward(images * 2 if images.mean() > 100 else images)


class Method(Small):
    def attention_points(self):
        return []


def ten(): return Small(10)
'''


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own", None)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A folder of images, three colours."""
    for label, colour in enumerate(((230, 30, 30), (30, 230, 30), (30, 30, 230))):
        for index in range(8):
            noise = np.random.default_rng(8 * label + index).integers(-30, 30, (40, 40, 3))
            path = tmp_path / "photos" / "abc"[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((noise + np.array(colour)).clip(0, 255).astype(np.uint8)).save(path)
    return f"folder:{tmp_path / 'photos'}"


SETTINGS = {"epochs": 1, "batch_size": 8, "lr": 0.02, "precision": "fp32", "workers": 0}


@pytest.mark.parametrize("student", ["Twice", "Lazy", "Looks", "Method"])
def test_unusual_networks_are_trained_saved_and_loaded(student: str, photos: str) -> None:
    run = at.distill(
        teacher="own:Small", student=f"own:{student}", data=photos, image_size=32, **SETTINGS
    )
    assert [pair.teacher for pair in run.record.pairs] == ["first", "second"]
    assert run.load(trust=[f"own:{student}"]).network.state_dict().keys()
    assert main(["evaluate", str(run.folder), "--json", "--trust", f"own:{student}"]) == 0


def test_a_module_is_a_point_by_all_its_names() -> None:
    network = at.models.build("own:Twice", classes=3)
    table = at.attention_points(network, (3, 32, 32))
    assert table["stages.1"] == table["second"]
    images = torch.rand(2, 3, 32, 32)
    maps = at.attention_maps(network, images, points=["second", "stages.1", "stages.0.0"])
    assert torch.equal(maps["second"], maps["stages.1"])
    assert maps["stages.0.0"].shape == (2, 16, 16)
    assert not any(unreadable.name == "stages.1" for unreadable in table.unreadable)


@pytest.mark.parametrize(
    ("student", "flags", "match"),
    [
        ("own:ten", {}, "has 10 outputs, the data set 3 classes"),
        ("own:Fixed", {"image_size": 64}, "does not run on images 64x64"),
        ("own:Notes", {}, "keeps _extra_state, a dict"),
        ("timm:mobilenetv3_small_050", {"batch_size": 1}, "batch-size of at least 2"),
        ("./own.py:Small", {}, r"cannot import '\./own\.py'"),
        (":Small", {}, "cannot import ''"),
        ("torchvision:vit_b_16", {"image_size": "32x48"}, "does not run on|could not be built"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_before_anything_is_written(
    student: str, flags: dict[str, object], match: str, photos: str, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "image_size": 32, "out": tmp_path / "small", **flags}
    with pytest.raises(InputError, match=match):
        at.train(model=student, data=photos, **settings)
    assert not (tmp_path / "small").exists()


def test_a_network_that_depends_on_values_has_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["points", "own:Looks", "--image-size", "32"]) == 0
    assert "* second" in capsys.readouterr().out
    assert main(["points", "own:Fixed", "--image-size", "64"]) == 2
    refusal = capsys.readouterr().err.strip()
    assert len(refusal.splitlines()) == 1


class LastAxis(nn.Module):
    """A network with channels last, whose channels hold the row that they come from."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, channels)
        self.stage = nn.Identity()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        places = nn.functional.adaptive_avg_pool2d(images, self.size).permute(0, 2, 3, 1)
        return self.stage(self.linear(places)).mean(dim=(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels", [8, 16])
def test_channels_last_are_told_from_as_many_rows(channels: int) -> None:
    network = LastAxis(16, channels)
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, :16] = 10.0
    maps = at.attention_maps(network, images, points=["linear"])["linear"]
    assert (maps[:, :8] > 2 * maps[:, 8:]).all()


def test_swins_first_stage_with_as_many_channels_as_rows_is_read_rightly() -> None:
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=384, window_size=12)
    table = at.attention_points(network, (3, 384, 384))
    assert [point.layout.axes for point in table.recommended] == ["NHWC"] * 4
    assert table.recommended[0].channels == table.recommended[0].height == 96
    wide = at.models.build("wrn-16-2", classes=3)  # 32 channels on 32x32, first
    assert at.attention_points(wide, (3, 32, 32))["group1"].layout.axes == "NCHW"


class Latents(nn.Module):
    """A stem, and then latent vectors without positions."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(1, count, 8))
        self.read = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        places = self.stem(images).flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(images), -1, -1)
        return self.classifier(self.read(queries, places).mean(dim=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [56, 60, 64])
def test_latent_vectors_are_no_attention_points(count: int) -> None:
    table = at.attention_points(Latents(count), (3, 28, 28))
    assert "read" not in [point.name for point in table]


def test_a_transformer_that_normalises_last_is_read_in_every_quarter() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 8, stride=8)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(8)
            )

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.stem(images).flatten(2).transpose(1, 2)
            for block in self.blocks:
                tokens = block(tokens)
            return tokens.mean(dim=1)  # type: ignore[no-any-return]

    table = at.attention_points(Transformer(), (3, 64, 64))
    assert [point.name for point in table.recommended] == [
        f"blocks.{index}.self_attn#0" for index in (1, 3, 5, 7)
    ]


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "levit_128s", "efficientformer_l1", "resnet18"]
)
def test_new_classes_get_new_heads_all_of_them(name: str) -> None:
    network = timm.create_model(name)
    replace_head(network, 3, (3, 224, 224))
    heads = at.models.logit_layers(network, (3, 224, 224))
    assert all(head.weight.shape[0] == 3 for head in heads.values())
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_the_last_layer_is_the_one_that_runs_last_not_the_one_defined_last() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 5)
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    network = HeadFirst()
    assert list(at.models.logit_layers(network, (3, 8, 8))) == ["head"]
    replace_head(network, 2, (3, 8, 8))
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    with pytest.raises(InputError, match="no linear layer or convolution"):
        replace_head(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), 2, (3, 8, 8))


def test_a_network_that_teaches_itself_and_a_frozen_student_are_refused() -> None:
    network, images = at.models.build("wrn-10-1", 3), torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match="are the same network"):
        at.Transfer(network, network, [at.ActivationAttention()])
    other = at.models.build("wrn-10-1", 3).requires_grad_(False)
    with pytest.raises(InputError, match="could not learn"):
        at.Transfer(other, network, [at.ActivationAttention()], example_input=images)
    term = at.ActivationAttention(pairs="group1:group1,group?:group?")
    with pytest.raises(InputError, match="group1:group1 is given more than once"):
        at.Transfer(at.models.build("wrn-10-1", 3), network, [term], example_input=images)


def test_what_a_run_records_is_what_evaluate_finds_at_any_size(
    photos: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A run at 48 pixels, continued at 32 pixels; then data with another class name."""
    first = at.train(model="own:Small", data=photos, image_size=48, **SETTINGS)
    own = ["own:Small"]
    run = at.train(model=str(first.folder), data=photos, image_size=32, trust=own, **SETTINGS)
    assert (
        '"input_size": [\n    3,\n    32,\n    32\n  ]' in (run.folder / "model.json").read_text()
    )
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), "--json", "--trust", *own]) == 0
    assert f'"loss": {run.record.final.test_loss}' in capsys.readouterr().out
    (tmp_path / "photos" / "c").rename(tmp_path / "photos" / "zebra")
    assert main(["evaluate", str(run.folder), "--trust", *own]) == 2
    assert "was trained on the classes a, b, c, " in capsys.readouterr().err


def test_a_teacher_gets_images_at_its_own_resolution(photos: str, tmp_path: Path) -> None:
    """The teacher is a vision transformer for 224 pixels; the student gets 32."""
    full = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    config = DistillConfig.checked(
        {
            "teacher": f"timm:vit_tiny_patch16_224@{tmp_path / 'full.safetensors'}",
            "student": "own:Small",
            "data": photos,
            "image_size": 32,
            **SETTINGS,
        }
    )
    prepared = set_up_run(config)
    assert prepared.data.train.size == (224, 224)
    assert prepared.data.test.size == (32, 32)
    assert prepared.card.input_size == (3, 32, 32)
    teacher_map = prepared.transfer.pair_descriptions[0].teacher_shapes[0]
    assert teacher_map == (192, 14, 14)
    assert prepared.transfer.pair_descriptions[0].student_shape == (8, 16, 16)
