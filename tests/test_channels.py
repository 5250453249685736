"""Each network gets as many channels as it takes: grey, colour, and stacks of any number."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import AugmentedView, as_input, from_datasets, load_data
from attention_transfer.drawing.rgb import to_rgb
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel, input_channels
from attention_transfer.network_inputs import channels_matched, preprocessing_for
from attention_transfer.preprocessing import Preprocessing

MODULE = """
import functools
from pathlib import Path
import numpy as np
from torch import nn

class Network(nn.Sequential):
    def __init__(self, channels, classes):
        layers = []
        for inputs in (channels, 6):
            layers += [nn.Conv2d(inputs, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))

def grey(num_classes=2): return Network(1, num_classes)
def colour(num_classes=2): return Network(3, num_classes)
def four(num_classes=2): return Network(4, num_classes)
def five(num_classes=2): return Network(5, num_classes)

class Stack:
    classes = ("low", "high")

    def __init__(self, channels, kind):
        self.channels, self.kind = channels, kind

    def __len__(self):
        return 30

    def __getitem__(self, index):
        values = np.random.default_rng(index).integers(0, 3000, (self.channels, 24, 20))
        values[index % 2] += 900
        values = {"uint16": values, "uint8": values // 16, "float32": values / 4000}[self.kind]
        return values.astype(self.kind), index % 2

class Files(Stack):
    def __getitem__(self, index):
        path = Path(f"stack{index}.npy")
        if not path.exists():
            np.save(path, super().__getitem__(index)[0].transpose(1, 2, 0))
        return np.load(path, mmap_mode="r"), index % 2

def deep_five(): return Stack(5, "uint16")
def plain_five(): return Stack(5, "uint8")
def float_four(): return Stack(4, "float32")
def files_five(): return Files(5, "uint16")
"""
SHORT = "--epochs 1 --batch-size 8 --lr 0.01 --workers 0 --precision fp32"


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stacked.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("stacked", None)
    monkeypatch.chdir(tmp_path)


def write_folder(mode: str = "RGB") -> None:
    for label in range(2):
        folder = Path("images", "ab"[label])
        folder.mkdir(parents=True)
        for number in range(10):
            generator = np.random.default_rng(number + 10 * label)
            pixels = generator.integers(0, 256, (24, 24, 4), dtype=np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(folder / f"{number}.png")


def trust(*names: str) -> list[str]:
    return [word for name in names for word in ("--trust", f"stacked:{name}")]


@pytest.mark.parametrize(("teacher", "student"), [("grey", "colour"), ("colour", "grey")])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_and_colour_networks_teach_each_other(teacher: str, student: str, mode: str) -> None:
    write_folder(mode)
    data = ["--data", "folder:images", "--image-size", "24", *SHORT.split()]
    assert main(["train", "--model", f"stacked:{teacher}", *data, "--out", "teacher"]) == 0
    distill = ["distill", "--teacher", "teacher", "--student", f"stacked:{student}", *data]
    distill += ["--kd-alpha", "0.5", "--backbone-lr", "0.5", *trust(teacher)]
    assert main([*distill, "--out", "student"]) == 0
    assert main([*distill, "--out", "cached", "--cache", "cache"]) == 0
    for run, name in (("teacher", teacher), ("student", student)):
        card = json.loads(Path(run, "model.json").read_text())
        channels = 1 if name == "grey" else 3
        assert card["input_size"] == [channels, 24, 24]
        assert len(card["mean"]) == len(card["std"]) == channels
    assert main(["evaluate", "student", "--workers", "0", *trust(student)]) == 0
    maps = ["maps", "teacher", "student", "--images", "images/a/0.png", "--out", "maps"]
    assert main([*maps, *trust(teacher, student)]) == 0
    assert main(["points", f"stacked:{student}", "--pair", f"stacked:{teacher}"]) == 0


def test_a_grey_network_gets_pillows_luminance() -> None:
    write_folder()
    data = load_data("folder:images", image_size=(24, 24))
    network = LoadedModel("grey", nn.Conv2d(1, 2, 1))
    data, (matched,) = channels_matched(data, [network])
    preprocessing = preprocessing_for(matched, data)
    assert preprocessing.mean == pytest.approx((0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406,))
    plain = Preprocessing((0.0,), (1.0,), channels=1)
    pixels = data.train.pixels(np.arange(3))
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in pixels.numpy()]
    grey = plain(as_input(pixels))[:, 0].numpy()
    assert np.abs(255 * grey - np.stack(expected)).max() < 0.51  # L is rounded
    repeated = torch.rand(2, 1, 5, 6).expand(-1, 3, -1, -1)
    assert torch.equal(plain(repeated), repeated[:, :1])
    assert torch.equal(Preprocessing((0.0,), (1.0,), channels=3)(repeated[:, :1]), repeated)


def test_the_channels_of_networks_are_found_without_changing_them() -> None:
    for channels in (1, 3, 4):
        network = timm.create_model("resnet10t", in_chans=channels, num_classes=2).train()
        assert input_channels(network, (32, 32)) == channels
        assert network.training
        assert not any(part._forward_pre_hooks for part in network.modules())

    class Mean(nn.Module):  # takes colours, whatever its first convolution takes
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[1] == 3
            return self.convolution(images.mean(1, keepdim=True))

    assert input_channels(Mean(), (32, 32)) == 3


def test_grey_images_in_memory_are_colours_to_a_colour_network() -> None:
    pixels = torch.randint(0, 256, (6, 16, 16, 1), dtype=torch.uint8)
    part = at.data.ImageSet(pixels, torch.arange(6) % 2)
    data = at.data.DataSet("memory", part, part, part, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    assert data.input_size == (1, 16, 16)
    own = Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), size=(16, 16))
    models = [
        LoadedModel("colour", nn.Conv2d(3, 2, 1), preprocessing=own),
        LoadedModel("grey", nn.Conv2d(1, 2, 1)),
    ]
    data, (colour, grey) = channels_matched(data, models)
    images = as_input(data.train.pixels(np.arange(2)))
    shown = preprocessing_for(colour, data)(images)
    torch.testing.assert_close(shown, images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    assert preprocessing_for(grey, data)(images).shape == (2, 1, 16, 16)


def test_a_grey_network_of_timm_learns_from_a_colour_one_as_objects() -> None:
    write_folder("L")
    student = timm.create_model("resnet10t", in_chans=1, num_classes=2)
    run = at.distill(
        teacher=at.models.build("wrn-10-1", 2),
        student=student,
        data="folder:images",
        image_size=32,
        epochs=1,
        batch_size=8,
        lr=0.01,
        workers=0,
        precision="fp32",
        probes=4,
    )
    card = json.loads((run.folder / "model.json").read_text())
    assert (card["input_size"][0], len(card["mean"])) == (1, 1)
    assert run.record.student.flops > 0


@pytest.mark.parametrize(
    ("network", "data"),
    [
        ("five", "deep_five"),
        ("five", "plain_five"),
        ("five", "files_five"),
        ("four", "float_four"),
    ],
)
def test_stacks_are_trained_on(network: str, data: str) -> None:
    settings = ["--data", f"stacked:{data}", "--image-size", "24x20", *SHORT.split()]
    settings += ["--mixup", "0.4", "--cutmix", "0.4", "--random-erasing", "0.5"]
    assert main(["train", "--model", f"stacked:{network}", *settings, "--out", "teacher"]) == 0
    distill = ["distill", "--teacher", "teacher", "--student", f"stacked:{network}", *settings]
    assert main([*distill, "--out", "run", *trust(network)]) == 0
    card = json.loads(Path("run/model.json").read_text())
    count = 5 if network == "five" else 4
    assert card["input_size"] == [count, 24, 20]
    assert len(card["mean"]) == len(card["std"]) == count
    with np.load("run/attention/examples.npz") as examples:
        shown = examples["images"]
    assert (shown.dtype, shown.shape[1:]) == (np.uint8, (24, 20, 3))
    assert shown.std() > 20
    assert main(["evaluate", "run", "--workers", "0", *trust(network, data)]) == 0
    assert main(["report", "teacher", "run", "--out", "page.html"]) == 0


def test_every_level_of_a_stack_reaches_the_network() -> None:
    whole = np.arange(5 * 24 * 20, dtype=np.uint16).reshape(5, 24, 20)
    for stack in (whole, whole.transpose(1, 2, 0), torch.from_numpy(whole)):
        data = from_datasets([(stack, number % 2) for number in range(20)], size=(21, 17))
        assert data.input_size == (5, 21, 17)
        assert len(data.preprocessing.mean) == 5
        images = as_input(data.train.pixels(np.arange(2)))
        assert images.shape == (2, 5, 21, 17)
        exact = data.with_transform(lambda image: image[:, :21, :17]).train
        view = as_input(exact.pixels(np.arange(1), AugmentedView(0, 1)))[0].double().numpy()
        assert np.array_equal(np.rint(view * 4095), whole[:, :21, :17])


def test_four_channels_are_opacity_to_a_colour_network() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    data = from_datasets([(pixels, number % 2) for number in range(20)], size=(21, 21))
    assert data.channels == 3
    stack, _ = channels_matched(data, [LoadedModel("four", nn.Conv2d(4, 2, 1))])
    assert stack.train.pixels(np.arange(1)).shape == (1, 21, 21, 4)
    write_folder("RGBA")
    files, _ = channels_matched(
        load_data("folder:images", image_size=(21, 21)), [LoadedModel("four", nn.Conv2d(4, 2, 1))]
    )
    assert files.train.pixels(np.arange(1)).shape == (1, 21, 21, 4)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--model stacked:five --data folder:images", "takes 5 channels, the images of images"),
        ("--model stacked:colour --data stacked:deep_five", "takes 3 channels, .* have 5"),
        ("--model stacked:grey --data stacked:deep_five", "takes 1 channels, .* have 5"),
        (
            "--model stacked:five --data stacked:deep_five --randaugment 5",
            "5 channels; leave out --randaugment",
        ),
    ],
)
def test_channels_that_do_not_fit_are_refused(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder()
    assert main(["train", *command.split(), "--image-size", "24", "--out", "run"]) == 2
    printed = capsys.readouterr().err.strip()
    assert len(printed.splitlines()) == 1
    assert re.search(message, printed)
    assert not Path("run").exists()


def test_show_draws_images_of_one_and_of_four_channels() -> None:
    grey = timm.create_model("resnet10t", in_chans=1, num_classes=2)
    four = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    at.show(grey, torch.rand(2, 1, 32, 32), normalization=((0.5,), (0.2,)), points="low")
    at.show({"grey": grey, "colour": at.models.build("wrn-10-1", 2)}, torch.rand(3, 32, 32))
    for images in (torch.rand(2, 4, 16, 18), np.random.rand(4, 16, 18).astype("float32")):
        at.show(four, images, points="1")
    with pytest.raises(InputError, match=r"got images \(1, 3, 8, 8\), expected \(N, 4, H, W\)"):
        at.show(four, torch.rand(1, 3, 8, 8), points="1")


def test_pictures_of_any_channels() -> None:
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3)
    assert np.array_equal(to_rgb(values[..., :1])[..., 2], np.rint(255 * values[..., 0]))
    stack = np.concatenate([values, values], axis=2)
    assert np.array_equal(to_rgb(stack), np.rint(255 * values).astype(np.uint8))
    assert np.array_equal(to_rgb(np.array([[[0, 100]]], np.uint8)), [[[50, 50, 50]]])
