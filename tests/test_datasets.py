"""Users' own datasets and Hugging Face's: every kind of sample, and what is refused."""

import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import AugmentedView, batches, load_data
from attention_transfer.data.arrays import as_pil
from attention_transfer.data.datasets import DatasetImages
from attention_transfer.data.views import CropResize
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.factories import import_object
from test_folders import CLASSES, fill

MODULE = '''
"""Networks and data of a user."""
import numpy as np
import torch
from torch import nn

PIXELS = np.random.default_rng(0).integers(0, 60, (36, 20, 24, 3), dtype=np.uint8)
PIXELS[np.arange(36), :, :, np.arange(36) % 3] += 150


class Pairs:
    classes = ["red", "green", "blue"]

    def __init__(self, count=36, broken=()):
        self.count, self.broken = count, broken
        self.targets = [index % 3 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise KeyError("gone")
        return PIXELS[index], self.targets[index]


class Dictionaries(Pairs):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"image": torch.from_numpy(image).permute(2, 0, 1) / 255, "label": label}


def pair(): return Pairs(), Pairs(12)
def splits():
    return {"train": Dictionaries(), "validation": Dictionaries(12), "test": Dictionaries(9)}

def unfinished(): return {"test": Pairs()}
def whole(): return {"train": Pairs()}
def nothing(): return 5
def failing(): raise RuntimeError("no disk")
def odd(): return [1.5] * 8, [2.5] * 8
def endless(): return iter(()), iter(())
def broken(): return Pairs(36, broken=(7,)), Pairs(12)
def alone(): return Pairs()


class Turned(Pairs):
    """A dataset whose samples have other labels than its attribute."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, 2 - label


class Changed(Pairs):
    """A dataset whose images are as a transform leaves them."""

    def __init__(self, change, labels=None):
        super().__init__()
        self.change = change
        if labels is not None:
            self.targets = labels

    def __getitem__(self, index):
        return self.change(PIXELS[index]), self.targets[index]


def turned(): return Turned()
def normalised(): return Changed(lambda image: torch.from_numpy(image).permute(2, 0, 1) / 128 - 1)
def unscaled(): return Changed(lambda image: image.astype(np.float32))
def deep(): return Changed(lambda image: image.astype(np.uint16) * 257)
def negative(): return Changed(lambda image: image, [-1, 0, 1] * 12)
def one_hot(): return Changed(lambda image: image, np.eye(3)[np.arange(36) % 3])
def raises(): return Changed(lambda image: 1 / 0)


class Small(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))


class Boxes(Small):
    def forward(self, images):
        return {"scores": super().forward(images)}


def number(): return 3
'''


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "__init__.py").write_text("")
    (tmp_path / "users" / "work.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("users", "users.work"):
        sys.modules.pop(name, None)


def test_pairs_and_dictionaries_give_the_same_images() -> None:
    pairs = load_data("users.work:pair", validation=0.25, image_size=(20, 24))
    splits = load_data("users.work:splits", image_size=(20, 24))
    assert pairs.class_names == splits.class_names == ("red", "green", "blue")
    assert [len(part) for part in (pairs.train, pairs.validation, pairs.test)] == [27, 9, 12]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 12, 9]
    expected = import_object("users.work:Pairs")()
    for part in (pairs.test, splits.test):
        pixels = part.pixels(np.arange(9))
        for index in range(9):
            image = Image.fromarray(expected[index][0])
            middle = image.resize((24, 20), Image.Resampling.BILINEAR, (1.5, 1.25, 22.5, 18.75))
            assert np.array_equal(pixels[index], np.asarray(middle))
        assert part.labels[:9].tolist() == [0, 1, 2] * 3
    assert pairs.test.fingerprint != splits.test.fingerprint


def test_every_image_is_in_the_fingerprint() -> None:
    samples = [(np.full((4, 4, 3), index, dtype=np.uint8), index % 2) for index in range(60)]

    def fingerprint() -> str:
        labels = torch.tensor([label for _, label in samples])
        return DatasetImages(labels, CropResize((4, 4)), samples, (0, 1), np.arange(60)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    samples[7][0][1, 2] += 1
    assert fingerprint() != before


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 6, 3), 100, dtype=np.uint8),
        np.full((4, 6), 100, dtype=np.uint8),
        np.full((4, 6, 1), 100, dtype=np.int64),
        np.full((4, 6, 3), 100 / 255, dtype=np.float32),
        torch.full((3, 4, 6), 100, dtype=torch.uint8),
        torch.full((1, 4, 6), 100 / 255),
        Image.new("L", (6, 4), 100),
    ],
)
def test_every_kind_of_image_is_understood(image: object) -> None:
    pixels = np.asarray(as_pil(image).convert("RGB"))
    assert np.array_equal(pixels, np.full((4, 6, 3), 100))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("users.work:unfinished", "has the splits test, expected train"),
        ("users.work:nothing", "got a int, expected a map-style dataset, a pair"),
        ("users.work:failing", "failed: RuntimeError: no disk"),
        ("users.work:odd", r"a sample of .* is a float, expected \(image, label\)"),
        ("users.work:endless", "expected a map-style dataset"),
        ("users.work:pears", "did you mean pair"),
        ("users.work:normalised", r"values go from -1 to .* before they are normalized"),
        ("users.work:unscaled", "values go from 0 to 2.*, expected 0 to 1"),
        ("users.work:negative", r"has 12 samples without a label \(-1\) among 36"),
        ("users.work:one_hot", "is no dataset of images and class indices"),
        ("users.work:raises", "ZeroDivisionError: division by zero"),
        ("users.play:pair", "cannot import 'users.play'"),
        ("imagenet:users", "not laid out as ImageNet"),
        ("hf:./nowhere", "cannot be loaded"),
    ],
)
def test_invalid_data_are_refused(
    data: str, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=match):
        load_data(data)
    assert main(["train", "--model", "wrn-10-1", "--data", data]) == 2
    printed = capsys.readouterr().err.strip()
    assert len(printed.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(workers: int) -> None:
    data = load_data("users.work:broken", image_size=(16, 16))
    order = np.arange(len(data.train))
    with pytest.raises(TrainingError, match="sample 7 of Pairs cannot be read: KeyError: 'gone'"):
        list(batches(data.train, order, 8, view=AugmentedView(0, 0), workers=workers))


def test_a_dataset_without_a_test_split_is_shared_out_by_class() -> None:
    data = load_data("users.work:whole", validation=0.2, image_size=(16, 16))
    parts = data.train, data.validation, data.test
    assert [np.bincount(part.labels).tolist() for part in parts] == [[8] * 3, [2] * 3, [2] * 3]
    chosen = [index for part in parts for index in part.indices.tolist()]
    assert sorted(chosen) == list(range(36))
    other = load_data("users.work:whole", validation=0.2, image_size=(16, 16), data_seed=1)
    assert other.test.indices.tolist() != data.test.indices.tolist()


def test_labels_are_those_of_the_samples() -> None:
    data = load_data("users.work:turned", image_size=(16, 16))
    for part in (data.train, data.test):
        assert part.labels.tolist() == [2 - index % 3 for index in part.indices.tolist()]


def test_sixteen_bits_and_a_dataset_alone() -> None:
    """Deep pixels are scaled; a single dataset is shared out."""
    deep, plain = (
        load_data(f"users.work:{name}", image_size=(16, 16)) for name in ("deep", "alone")
    )
    everything = np.arange(len(plain.test))
    assert torch.equal(deep.test.pixels(everything), plain.test.pixels(everything))


def test_a_view_does_not_depend_on_those_asked_for_before(tmp_path: Path) -> None:
    """An opened JPEG is not decoded at a half of its size for good."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((800, 600)).save(tmp_path / "a.jpg")

    def opened() -> DatasetImages:
        samples = [(Image.open(tmp_path / "a.jpg"), 0)]
        labels = torch.zeros(1, dtype=torch.int64)
        return DatasetImages(labels, CropResize((32, 32)), samples, (0, 1), np.arange(1))

    indices, views = np.arange(1), [AugmentedView(0, number) for number in range(3)]
    forth, back = opened(), opened()
    first = [forth.pixels(indices, view) for view in views]
    second = [back.pixels(indices, view) for view in reversed(views)]
    assert all(torch.equal(*pair) for pair in zip(first, reversed(second), strict=True))
    assert forth.dataset[0][0].size == (800, 600)


def test_a_folder_in_imagenets_layout(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        fill(tmp_path / "images" / split, 4, start=50 * number)
    data = load_data(f"imagenet:{tmp_path / 'images'}", validation=0.25, image_size=(16, 16))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 3, 12]


def test_a_dataset_of_hugging_faces_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for number, split in enumerate(("train", "test")):
        fill(tmp_path / "images" / split, 4, start=50 * number)
    shutil.copytree(tmp_path / "images", tmp_path / "spoilt")
    whole = (tmp_path / "spoilt" / "train" / "cat" / "01.png").read_bytes()
    (tmp_path / "spoilt" / "train" / "cat" / "01.png").write_bytes(whole[: len(whole) // 2])
    spoilt = load_data(f"hf:{tmp_path / 'spoilt'}", validation=0.25, image_size=(24, 32))
    assert [len(part) for part in (spoilt.train, spoilt.validation, spoilt.test)] == [8, 3, 12]
    assert spoilt.notices[0].startswith("skipped corrupt image sample 5 of Dataset")
    data = load_data(f"hf:{tmp_path / 'images'}", validation=0.25, image_size=(24, 32))
    assert data.class_names == CLASSES
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 3, 12]
    local = load_data(f"folder:{tmp_path / 'images'}", validation=0.25, image_size=(24, 32))
    assert torch.equal(data.test.pixels(np.arange(12)), local.test.pixels(np.arange(12)))


def test_arrays_of_hugging_faces_library_are_no_broken_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Array3D((12, 12, 3), "uint8"), "label": datasets.Value("int64")}
    )
    samples = {"image": list(images), "label": [index % 3 for index in range(30)]}
    whole = datasets.Dataset.from_dict(samples, features).with_format("numpy")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: {"train": whole})
    data = load_data("hf:someone/arrays:small", image_size=(12, 12))
    assert data.notices == ()
    assert len(data.train) + len(data.validation) + len(data.test) == 30


def test_a_users_networks_and_data_make_a_run(tmp_path: Path) -> None:
    settings = {"data": "users.work:pair", "image_size": 32, "epochs": 1, "batch_size": 8}
    run = at.distill(
        teacher="users.work:Small",
        student="users.work:Small",
        out=tmp_path / "run",
        **settings,
    )
    assert [pair.student for pair in run.record.pairs] == ["stem", "body"]
    trust = ["--trust", "users.work:Small", "--trust", "users.work:pair"]
    assert main(["evaluate", str(run.folder), *trust]) == 0


@pytest.mark.parametrize(
    ("student", "match"),
    [
        ("users.work:number", "returned a int, expected a torch.nn.Module"),
        ("users.work:Boxes", r"returns a dict with 'scores', expected logits \(N, classes\)"),
        ("users.work:Smal", "did you mean Small"),
    ],
)
def test_invalid_networks_are_refused(student: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.distill(teacher="users.work:Small", student=student, data="users.work:pair")
    assert not Path("runs").exists()


def stripes(count: int, size: tuple[int, int] = (20, 24)) -> list[tuple[np.ndarray, int]]:
    """Samples of three classes, each with a channel of its own."""
    noise = np.random.default_rng(count).integers(0, 60, (count, *size, 3), dtype=np.uint8)
    noise[np.arange(count), :, :, np.arange(count) % 3] += 150
    return [(image, index % 3) for index, image in enumerate(noise)]


def test_a_data_set_is_made_from_datasets_in_python() -> None:
    names = ("red", "green", "blue")
    data = at.data.from_datasets(
        stripes(60), stripes(9), class_names=names, mean=(0.4,) * 3, std=(0.3,) * 3
    )
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54, 6, 9]
    assert (data.class_names, data.input_size) == (names, (3, 20, 24))
    assert (data.mean, data.std) == ((0.4,) * 3, (0.3,) * 3)
    splits = at.data.from_datasets(stripes(60), stripes(9), stripes(12), size=(16, 16))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [60, 12, 9]
    assert (splits.class_names, splits.input_size) == (("0", "1", "2"), (3, 16, 16))
    alone = at.data.from_datasets(stripes(60), validation_share=0.25)
    assert [len(part) for part in (alone.train, alone.validation, alone.test)] == [36, 12, 12]


def test_a_transform_is_for_training_images_alone() -> None:
    data = at.data.from_datasets(stripes(60), transform=lambda image: image.rotate(180))
    order = np.arange(4)
    plain = at.data.from_datasets(stripes(60))
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(data, split).pixels(order), getattr(plain, split).pixels(order))
    whole = torch.from_numpy(np.stack([stripes(60)[index][0] for index in data.train.indices[:4]]))
    assert torch.equal(data.train.pixels(order, AugmentedView(0, 1)), whole.flip(1, 2))


@pytest.mark.parametrize("kind", ["pair", "dictionary", "data set"])
def test_objects_are_data_as_names_are(kind: str) -> None:
    datasets = {"train": stripes(60), "test": stripes(9)}
    given = {
        "pair": (datasets["train"], datasets["test"]),
        "dictionary": datasets,
        "data set": at.data.from_datasets(**datasets),
    }[kind]
    data = load_data(given, image_size=(16, 32))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54, 6, 9]
    assert data.input_size == (3, 16, 32)
    expected = at.data.from_datasets(**datasets, size=(16, 32))
    for view in (None, AugmentedView(0, 3)):
        pixels = data.train.pixels(np.arange(5), view)
        assert torch.equal(pixels, expected.train.pixels(np.arange(5), view))


@pytest.mark.parametrize(
    ("datasets", "settings", "match"),
    [
        ([stripes(60), []], {}, "data test has no samples"),
        ([stripes(60)], {"class_names": ("a", "b")}, "labels from 0 to 2, expected .* 0 to 1"),
        ([stripes(60)], {"transform": lambda image: 3}, "the transform .*got a int"),
        ([iter(())], {}, "data train is a .*iterator, expected a map-style dataset"),
        ([stripes(60)], {"validation_share": 0.001}, "validation share"),
    ],
)
def test_datasets_without_images_or_classes_are_refused(
    datasets: list[object], settings: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        at.data.from_datasets(*datasets, **settings)  # type: ignore[arg-type]


def test_a_factory_may_return_a_data_set_with_a_transform(tmp_path: Path) -> None:
    (tmp_path / "ownset.py").write_text(
        "import attention_transfer as at\n"
        "from test_datasets import stripes\n"
        "def make():\n"
        "    return at.data.from_datasets(stripes(60), transform=lambda image: image.rotate(180))\n"
    )
    data = load_data("ownset:make", image_size=(10, 12))
    assert data.input_size == (3, 10, 12)
    order = np.arange(len(data.train))
    turned = data.train.pixels(order, AugmentedView(0, 0))
    assert torch.equal(turned, data.train.pixels(order, AugmentedView(0, 9)))
