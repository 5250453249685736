"""Folders of images: classes, splits, corrupt files, augmented views, and loader workers."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import (
    AugmentedView,
    ImageSet,
    WithAugmentation,
    batches,
    corrupt_images,
    load_data,
    loader_workers,
)
from attention_transfer.data.files import FileImages
from attention_transfer.data.folders import folder_data
from attention_transfer.data.views import CropResize, centre, random_crop_and_flip
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.training import record as training_record

CLASSES = ("bird", "cat", "dog")


def write(path: Path, seed: int, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def fill(folder: Path, count: int = 10, classes: tuple[str, ...] = CLASSES, start: int = 0) -> Path:
    for label, name in enumerate(classes):
        for index in range(count):
            write(folder / name / f"{index:02}.png", start + 1000 * label + index)
    return folder


def test_a_folder_without_splits_is_shared_out_by_class_and_seed(tmp_path: Path) -> None:
    data = load_data(f"folder:{fill(tmp_path)}", validation=0.25, image_size=(16, 16))
    assert data.class_names == CLASSES
    assert data.input_size == (3, 16, 16)
    for part, each in ((data.train, 6), (data.validation, 2), (data.test, 2)):
        assert np.bincount(part.labels).tolist() == [each] * 3
    names = [path for part in (data.train, data.validation, data.test) for path in part.paths]
    assert len(set(names)) == 30
    again = folder_data(tmp_path, (16, 16))
    assert again.test.paths == data.test.paths
    assert folder_data(tmp_path, (16, 16), data_seed=1).test.paths != data.test.paths
    for part in (data.train, data.test):
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            assert path.startswith(CLASSES[label] + "/")


def test_other_pixels_in_a_file_of_the_same_size_have_another_fingerprint(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "1.bmp", seed=0)
    images = FileImages(torch.tensor([0]), CropResize((16, 16)), tmp_path, ("cat/1.bmp",))
    size, before = (tmp_path / "cat/1.bmp").stat().st_size, images.fingerprint
    assert images.resized((8, 8), "bilinear").fingerprint == before
    write(tmp_path / "cat" / "1.bmp", seed=1)
    assert (tmp_path / "cat/1.bmp").stat().st_size == size
    assert images.resized((16, 16), "bilinear").fingerprint != before
    (tmp_path / "cat/1.bmp").unlink()
    with pytest.raises(TrainingError, match=r"cat/1\.bmp can no longer be read: No such file"):
        _ = images.subset(np.array([0])).fingerprint


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "val"), (9, 0, 9)),
        (("train", "test"), (9, 0, 9)),
        (("training", "valid", "test"), (9, 9, 9)),
    ],
)
def test_splits_of_the_folder_are_used(
    splits: tuple[str, ...], sizes: tuple[int, int, int], tmp_path: Path
) -> None:
    for number, split in enumerate(splits):
        fill(tmp_path / split, 3, start=100 * number)
    data = folder_data(tmp_path, (16, 16))
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert data.test.root == tmp_path / splits[-1]


def test_nested_files_count_and_other_files_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    write(tmp_path / "cat" / "indoors" / "sofa" / "a.PNG", 1)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no image")
    for left_behind in (".DS_Store", "dog/Thumbs.db", ".cache/x.png"):
        (tmp_path / left_behind).parent.mkdir(exist_ok=True)
        (tmp_path / left_behind).write_bytes(b"junk")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    data = folder_data(tmp_path, (16, 16))
    assert len(data.train) + len(data.test) == 31
    (notice,) = data.notices
    assert "readme.md" in notice
    assert "cat/notes.txt" in notice
    assert "2 files" in notice


def test_corrupt_images_are_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    for number in range(5):
        (tmp_path / "dog" / f"0{number}.png").write_bytes(b"text")
    data = folder_data(tmp_path, (16, 16))
    assert list(data.notices) == [
        f"skipped corrupt image {tmp_path / 'dog' / f'0{number}.png'}: it is not an image"
        for number in range(5)
    ]
    whole = {CLASSES[label] for label in data.train.labels.tolist()}
    assert whole == set(CLASSES)
    assert not any(path in data.train.paths for path in ("dog/00.png", "dog/04.png"))
    (tmp_path / "dog" / "05.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"6 of 30 images are corrupt, .*dog/00\.png: it is not"):
        folder_data(tmp_path, (16, 16))


def test_more_corrupt_images_are_counted_and_five_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrupt_images, "SKIPPED_SHARE", 0.5)
    monkeypatch.setattr(training_record, "MOST_SKIPPED", 6)
    fill(tmp_path / "images")
    corrupt = [tmp_path / "images" / "dog" / f"0{number}.png" for number in range(7)]
    for path in corrupt:
        path.write_bytes(b"text")
    settings = {"data": f"folder:{tmp_path / 'images'}", "image_size": 16, "batch_size": 8}
    run = at.train("wrn-10-1", out="run", epochs=1, precision="fp32", **settings)
    data = run.record.data
    assert data.skipped == 7
    assert [image.name for image in data.skipped_images] == list(map(str, corrupt[:6]))
    assert {image.reason for image in data.skipped_images} == {"it is not an image"}
    assert len(data.notices) == 6
    assert all(str(path) in data.notices[index] for index, path in enumerate(corrupt[:5]))
    assert data.notices[5] == "skipped 7 corrupt images in all; record.json lists them"
    assert data.notices[5] in (run.folder / "report.html").read_text()


def empty_class(folder: Path) -> None:
    (folder / "fish").mkdir()


def all_corrupt(folder: Path) -> None:
    for number in range(3):
        (folder / "fish").mkdir(exist_ok=True)
        (folder / "fish" / f"{number}.png").write_bytes(b"text")


def other_classes(folder: Path) -> None:
    fill(folder / "train", 3)
    fill(folder / "val", 3, ("cat", "wolf", "fox"))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (empty_class, "has no images of 1 of 4 classes: fish"),
        (all_corrupt, "has no images of 1 of 4 classes: fish"),
        (other_classes, "2 classes that .*train has not: fox, wolf"),
        (lambda folder: write(folder / "fish" / "one.png", 0), "'fish' has 1 images, expected at"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(
    spoil: object, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=match):
        folder_data(tmp_path, (16, 16))
    assert main(["train", "--model", "wrn-10-1", "--data", f"folder:{tmp_path}"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("runs").exists()


def test_splits_without_one_to_train_on_are_refused(tmp_path: Path) -> None:
    for split in ("val", "test"):
        fill(tmp_path / split, 3)
    with pytest.raises(InputError, match="has the splits val, test and no train"):
        folder_data(tmp_path, (16, 16))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = folder_data(fill(tmp_path, classes=("car", "plane", "train")), (16, 16))
    assert data.class_names == ("car", "plane", "train")


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_data(f"folder:{tmp_path}/nothing")
    with pytest.raises(InputError, match="has 0 subfolders"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(InputError, match="leave out the image size"):
        load_data("cluttered-digits", image_size=(64, 64))


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(sizes, sizes, st.integers(0, 1000))
@example((7, 59), (1, 51), 1)
def test_crops_lie_inside_the_image_and_have_the_wanted_shape(
    whole: tuple[int, int], size: tuple[int, int], index: int
) -> None:
    box, _ = random_crop_and_flip(whole, size, seed=index)
    middle = centre(whole, size)
    for part in (box, middle, centre(whole, size, share=1.0)):
        assert 0 <= part.left < part.right <= whole[1]
        assert 0 <= part.top < part.bottom <= whole[0]
    assert middle.left + middle.right == pytest.approx(whole[1])
    assert middle.top + middle.bottom == pytest.approx(whole[0])
    ratio = (middle.right - middle.left) / (middle.bottom - middle.top)
    assert ratio == pytest.approx(size[1] / size[0])


def test_an_image_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train
    opened: list[object] = []
    original = Image.open
    monkeypatch.setattr(
        Image, "open", lambda *args, **kw: (opened.append(args), original(*args, **kw))[1]
    )
    for view in (None, AugmentedView(0, 0)):
        images.pixels(np.arange(5), view)
    assert len(opened) == 10


def test_areas_and_ratios_of_crops_are_spread_evenly() -> None:
    boxes = [random_crop_and_flip((1000, 1000), (8, 8), seed)[0] for seed in range(3000)]
    widths = np.array([box.right - box.left for box in boxes])
    heights = np.array([box.bottom - box.top for box in boxes])
    areas = widths * heights / 1e6
    assert areas.min() >= 0.079
    assert 0.4 < np.median(areas) < 0.55  # a little under 0.54: large ones fit less often
    ratios = np.log(widths / heights)
    assert abs(ratios.mean()) < 0.02
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.01


STRONG = [
    {},
    {"randaugment": 9},
    {"random_erasing": 0.7},
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {"randaugment": 9, "random_erasing": 0.3, "mixup": 0.2, "cutmix": 1.0},
]


@pytest.mark.parametrize("views", STRONG, ids=str)
def test_a_view_is_a_function_of_seed_view_and_sample(
    tmp_path: Path, views: dict[str, Any]
) -> None:
    images = WithAugmentation(folder_data(fill(tmp_path), (16, 16)).train, 3, **views)
    order = np.arange(len(images))
    whole = images.pixels(order, AugmentedView(0, 2))
    torch.manual_seed(5)
    assert torch.equal(images.pixels(order[[7, 2]], AugmentedView(0, 2)), whole[[7, 2]])
    for other in (AugmentedView(1, 2), AugmentedView(0, 3)):
        assert not torch.equal(images.pixels(order, other), whole)
    evaluated = images.pixels(order)
    assert torch.equal(evaluated, images.pixels(order))
    assert evaluated.shape == (len(images), 16, 16, 3)
    assert torch.equal(evaluated, images.images.pixels(order))


@pytest.mark.parametrize("ways", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_mixed_images_hold_their_labels_shares(ways: tuple[str, ...]) -> None:
    """Images of one colour a class: the share of a colour is the share of its class."""
    labels = torch.arange(600) % 3
    plain = torch.zeros(600, 10, 14, 3, dtype=torch.uint8)
    plain[torch.arange(600), :, :, labels] = 255
    images = WithAugmentation(ImageSet(plain, labels), 3, **dict.fromkeys(ways, 1.0))
    order = np.arange(600)
    view = AugmentedView(0, 5)
    (batch,) = batches(images, order, 600, view=view)
    assert torch.allclose(batch.labels.sum(1), torch.ones(600))
    assert torch.allclose(batch.images.mean((2, 3)), batch.labels, atol=0.6 / 255)
    cut = (images.pixels(order, view) % 255 == 0).flatten(1).all(1)
    pure = batch.labels.amax(1) > 0.99
    assert bool((~cut & ~pure).any()) == ("mixup" in ways)
    assert bool((cut & ~pure).any()) == ("cutmix" in ways)
    own_share = batch.labels[torch.arange(600), labels]
    # Blended: a half, and a third of the other half. Cut: more, as parts outside are cut off.
    assert 0.62 < float(own_share.mean()) < (0.71 if ways == ("mixup",) else 0.8)
    assert torch.equal(next(batches(images, order, 600)).labels, labels)


def test_batches_are_the_same_with_workers(tmp_path: Path) -> None:
    images = WithAugmentation(
        folder_data(fill(tmp_path), (16, 16)).train, 3, randaugment=9, mixup=0.2
    )
    order = np.random.default_rng(0).permutation(len(images))
    alone, helped = (
        list(batches(images, order, 5, view=AugmentedView(0, 1), workers=workers))
        for workers in (0, 2)
    )
    assert len(alone) == len(helped) == 5
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert np.array_equal(one.indices, other.indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_named(tmp_path: Path, workers: int) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train
    (images.root / images.paths[7]).write_bytes(b"gone")
    with pytest.raises(TrainingError, match=rf"{images.paths[7]} can no longer be decoded"):
        list(batches(images, np.arange(len(images)), 4, view=AugmentedView(0, 0), workers=workers))


class Deadly(FileImages):
    """File images that kill the process that decodes sample 9."""

    def pixels(self, indices: np.ndarray, view: AugmentedView | None = None) -> torch.Tensor:
        if 9 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(indices, view)


def test_a_killed_worker_ends_the_epoch_and_names_the_sample(tmp_path: Path) -> None:
    whole = folder_data(fill(tmp_path), (16, 16)).train
    images = Deadly(whole.labels, whole.crop_resize, whole.root, whole.paths)
    with pytest.raises(
        TrainingError,
        match=rf"worker was killed \(SIGKILL\) while it loaded \S*{whole.paths[9]}, .*--workers 0",
    ):
        list(batches(images, np.arange(len(images)), 4, workers=1))


class Endless(FileImages):
    """File images whose sample 9 takes forever."""

    def pixels(self, indices: np.ndarray, view: AugmentedView | None = None) -> torch.Tensor:
        if 9 in indices:
            time.sleep(600)
        return super().pixels(indices, view)


def test_a_worker_that_hangs_ends_the_epoch_and_names_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_workers, "TIMEOUT", 3)
    whole = folder_data(fill(tmp_path), (16, 16)).train
    images = Endless(whole.labels, whole.crop_resize, whole.root, whole.paths)
    with pytest.raises(TrainingError, match=rf"in 3 s; at \S*{whole.paths[9]}; .*--workers 0"):
        list(batches(images, np.arange(len(images)), 4, workers=1))


def test_a_student_learns_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher, a student of another family and resolution, resumed and evaluated."""
    for name, colour in zip(CLASSES, ((250, 0, 0), (0, 250, 0), (0, 0, 250)), strict=True):
        for index in range(12):
            path = tmp_path / "images" / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).integers(0, 60, (40, 50, 3))
            Image.fromarray((noise + np.array(colour) * 0.7).astype(np.uint8)).save(path)
    data = f"folder:{tmp_path / 'images'}"
    settings = {"data": data, "epochs": 2, "batch_size": 8, "lr": 0.02, "precision": "fp32"}
    teacher = at.train(model="wrn-10-1", out=tmp_path / "teacher", image_size=32, **settings)
    student = at.distill(
        teacher=str(teacher.folder),
        student="timm:mobilenetv3_small_050",
        out=tmp_path / "student",
        image_size="64x96",
        kd_alpha=0.5,
        mixup=0.2,
        randaugment=5,
        **settings,
    )
    assert student.record.student.name == "timm:mobilenetv3_small_050"
    assert [pair.student for pair in student.record.pairs]
    assert main(["evaluate", str(student.folder), "--json"]) == 0
    card = (student.folder / "model.json").read_text()
    assert '"input_size": [\n    3,\n    64,\n    96\n  ]' in card
    with pytest.raises(InputError, match="leave out mixup"):
        at.distill(
            teacher=str(teacher.folder),
            student="wrn-10-1",
            flip_symmetry_beta=0.1,
            flip_classes="0",
            cutmix=1,
            **settings,
        )
    capsys.readouterr()


def listed_as_cub(folder: Path) -> None:
    fill(folder / "images", 4)
    paths = [f"{name}/{index:02}.png" for name in CLASSES for index in range(4)]
    images = [f"{number} {path}" for number, path in enumerate(paths, start=1)]
    split = [f"{number} {int(number % 4 != 0)}" for number in range(1, 13)]
    (folder / "images.txt").write_text("\n".join(images))
    (folder / "train_test_split.txt").write_text("\n".join(split))


def listed_as_scenes(folder: Path) -> None:
    fill(folder / "Images", 5)  # the fifth of each class is on no list
    for name, indices in (("Train", (0, 1, 2)), ("Test", (3,))):
        lines = [f"{scene}/{index:02}.png" for scene in CLASSES for index in indices]
        (folder / f"{name}Images.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("layout", [listed_as_cub, listed_as_scenes])
def test_splits_in_lists_are_recognised(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path)
    data = folder_data(tmp_path, (16, 16))
    assert data.class_names == CLASSES
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert data.test.paths == ("bird/03.png", "cat/03.png", "dog/03.png")
    (tmp_path / data.test.root.name / "cat" / "03.png").unlink()
    with pytest.raises(InputError, match=r"1 of 12 listed images are not in .*cat/03\.png"):
        folder_data(tmp_path, (16, 16))
