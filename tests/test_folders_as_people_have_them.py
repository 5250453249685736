"""Folders of images as people have them: layouts, splits, what is no class, and few images."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_transfer.cli import main
from attention_transfer.data import DataSet, hold_out_validation, load_data
from attention_transfer.errors import InputError
from test_folders import fill, write

SMALL = {"image_size": (8, 8)}
WORDNET = ("n01", "n02", "n03")


def sizes(data: DataSet) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def kaggle(root: Path) -> Path:
    """Write ImageNet as Kaggle's archive has it, and return the folder of its splits."""
    splits = root / "ILSVRC" / "Data" / "CLS-LOC"
    fill(splits / "train", 8, WORDNET)
    lines = ["ImageId,PredictionString"]
    for index in range(6):
        name = f"ILSVRC2012_val_{index:08}"
        write(splits / "val" / f"{name}.png", 90 + index)
        lines.append(f"{name},{WORDNET[index % 3]} 1 2 3 4 {WORDNET[index % 3]} 5 6 7 8")
    write(splits / "test" / "ILSVRC2012_test_00000001.png", 99)
    (root / "LOC_val_solution.csv").write_text("\n".join(lines))
    return splits


@pytest.mark.parametrize("source", ["imagenet", "folder"])
@pytest.mark.parametrize("inside", [False, True])
def test_kaggles_imagenet_is_read_with_its_solution(
    tmp_path: Path, source: str, inside: bool
) -> None:
    root = tmp_path / "imagenet"
    splits = kaggle(root)
    data = load_data(f"{source}:{splits if inside else root}", validation=0.25, **SMALL)
    assert data.class_names == WORDNET
    assert sizes(data) == (18, 6, 6)
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test.paths[4] == "ILSVRC2012_val_00000004.png"
    said = " ".join(data.notices)
    assert "LOC_val_solution.csv" in said
    assert f"{splits / 'test'} has no labels" in said
    (root / "LOC_val_solution.csv").unlink()
    with pytest.raises(InputError, match=r"cannot be the validation split; put LOC_val_sol"):
        load_data(f"{source}:{splits}", **SMALL)


def test_a_solution_must_name_the_classes_of_train(tmp_path: Path) -> None:
    splits = kaggle(tmp_path / "imagenet")
    shutil.rmtree(splits / "train" / "n03")
    with pytest.raises(InputError, match=r"no class of train for 2 of 6 images"):
        load_data(f"imagenet:{tmp_path / 'imagenet'}", **SMALL)


def test_tiny_imagenets_validation_images_have_their_annotations(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for name in WORDNET:
        fill(root / "train" / name, 8, ("images",))
        (root / "train" / name / f"{name}_boxes.txt").write_text("box")
    lines = []
    for index in range(6):
        write(root / "val" / "images" / f"val_{index}.png", 90 + index)
        lines.append(f"val_{index}.png\t{WORDNET[2 - index % 3]}\t0\t0\t9\t9")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    write(root / "test" / "images" / "test_0.png", 99)
    data = load_data(f"folder:{root}", validation=0.25, **SMALL)
    assert sizes(data) == (18, 6, 6)
    assert data.test.labels.tolist() == [2, 1, 0, 2, 1, 0]
    assert any(f"{root / 'test'} has no labels" in notice for notice in data.notices)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "eval"), (27, 3, 9)),
        (("train", "dev", "holdout"), (30, 9, 9)),
        (("Training", "Validation", "test1"), (30, 9, 9)),
        (("train2017", "val2017"), (27, 3, 9)),
        (("train_set", "valid", "hold-out"), (30, 9, 9)),
    ],
)
def test_splits_of_other_names_are_used(
    tmp_path: Path, names: tuple[str, ...], expected: tuple[int, int, int]
) -> None:
    for number, name in enumerate(names):
        fill(tmp_path / name, 3 if number else 10, start=100 * number)
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert sizes(data) == expected
    assert data.test.root == tmp_path / names[-1]


def flat(split: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        fill(folder / "train")
        write(folder / split / "1.png", 1)

    return spoil


def split_among_classes(folder: Path) -> None:
    fill(folder, classes=("car", "plane"))
    fill(folder / "train", classes=("steam", "diesel"))


def only_flat_splits(folder: Path) -> None:
    fill(folder, classes=("train", "test1"))


def same_split_twice(folder: Path) -> None:
    for name in ("train", "val", "dev"):
        fill(folder / name)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (flat("val"), "val has images and no subfolders .*validation split; sort them"),
        (flat("test"), "test has images and no subfolders"),
        (flat("eval"), "eval has images and no subfolders"),
        (split_among_classes, "train/ with subfolders, as a split has, beside .*car, plane"),
        (only_flat_splits, "has images and no subfolders for its classes"),
        (same_split_twice, "has both dev and val, which are each a validation split"),
    ],
)
def test_what_is_there_and_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], match: str
) -> None:
    spoil(tmp_path / "photos")
    with pytest.raises(InputError, match=match):
        load_data(f"folder:{tmp_path / 'photos'}", **SMALL)
    assert main(["train", "--model", "wrn-10-1", "--data", f"folder:{tmp_path / 'photos'}"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_a_class_with_a_splits_name_and_subfolders_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, classes=("car", "plane", "train"))
    write(tmp_path / "train" / "steam" / "a.png", 1)
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert data.class_names == ("car", "plane", "train")
    assert any("is a class beside 2 others" in notice for notice in data.notices)


def test_folders_beside_the_splits_are_named(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        fill(tmp_path / split, start=100 * number)
    fill(tmp_path / "extra")
    (tmp_path / "devkit").mkdir()
    (tmp_path / "test").mkdir()
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert f"left out of {tmp_path}, which has splits: devkit, extra" in data.notices
    assert f"{tmp_path / 'test'} holds no images: it is left out" in data.notices


LEFT_BEHIND = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", ".thumbnails", "$RECYCLE.BIN")
ALSO_LEFT_BEHIND = ("System Volume Information", "#recycle", "lost+found", "@Recycle")


@pytest.mark.parametrize("under", ["", "train"])
def test_what_systems_leave_behind_is_left_out_and_said(tmp_path: Path, under: str) -> None:
    folder = fill(tmp_path / under)
    clean = load_data(f"folder:{tmp_path}", **SMALL)
    assert clean.notices == ()
    for name in (*LEFT_BEHIND, *ALSO_LEFT_BEHIND):
        write(folder / name / "cat" / "a.png", 1)
        write(folder / "cat" / name / "SYNOPHOTO_THUMB_M.jpg", 1)
    for name in ("._01.png", "Thumbs.db", "desktop.ini"):
        (folder / "dog" / name).write_bytes(b"junk")
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert data.class_names == clean.class_names
    assert data.train.fingerprint == clean.train.fingerprint
    assert data.test.fingerprint == clean.test.fingerprint
    (notice,) = data.notices
    assert "what systems leave behind" in notice
    assert "$RECYCLE.BIN" in notice


@pytest.mark.parametrize(
    ("suffix", "advice"),
    [
        (".heic", "12 .heic files, .* convert them to JPEG or PNG: magick"),
        (".CR2", "12 .cr2 files, .* convert them to JPEG"),
        (".zip", "12 .zip files, .* unpack them"),
        ("", "12 files without a suffix"),
    ],
)
def test_a_class_of_other_files_says_what_they_are(
    tmp_path: Path, suffix: str, advice: str
) -> None:
    fill(tmp_path)
    (tmp_path / "emu").mkdir()
    for index in range(12):
        (tmp_path / "emu" / f"IMG_{index}{suffix}").write_bytes(b"data")
    with pytest.raises(InputError, match=f"no images of 1 of 4 classes: emu; emu holds {advice}"):
        load_data(f"folder:{tmp_path}", **SMALL)


def phone(root: Path, count: int) -> Path:
    """Write classes of some images and ten HEIC files each."""
    for name in fill(root, count).iterdir():
        for index in range(10):
            (name / f"IMG_{index}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    return root


@pytest.mark.parametrize(
    ("count", "options", "match"),
    [
        (2, {}, "class 'bird' has 2 images, expected at least 3"),
        (3, {"validation": 0.01}, "validation share of 0.01 .* choose another --validation"),
    ],
)
def test_files_of_other_formats_are_named_when_images_are_too_few(
    tmp_path: Path, count: int, options: dict[str, Any], match: str
) -> None:
    phone(tmp_path, count)
    said = r"; 30 .heic files are not read as images \(bird/IMG_0.heic\); convert them to JPEG"
    with pytest.raises(InputError, match=f"{match}.*{said}") as error:
        load_data(f"folder:{tmp_path}", **SMALL, **options)
    assert str(error.value).count("not read as images") == 1


def test_files_of_other_formats_are_named_where_they_are_skipped(tmp_path: Path) -> None:
    data = load_data(f"folder:{phone(tmp_path / 'photos', 10)}", **SMALL)
    assert any("30 .heic files are not read as images" in notice for notice in data.notices)
    fill(tmp_path / "splits" / "train", 10)
    (tmp_path / "splits" / "val").mkdir()
    (tmp_path / "splits" / "val" / "1.heic").write_bytes(b"data")
    (notice,) = load_data(f"folder:{tmp_path / 'splits'}", **SMALL).notices
    assert "val holds no images: it is left out; 1 .heic files are not read" in notice


def test_a_heic_file_is_known_by_any_name(tmp_path: Path) -> None:
    phone(tmp_path, 10)
    (tmp_path / "cat" / "IMG_0.heic").rename(tmp_path / "cat" / "IMG_0.jpg")
    data = load_data(f"folder:{tmp_path}", **SMALL)
    ((name, reason),) = data.corrupt
    assert name == str(tmp_path / "cat" / "IMG_0.jpg")
    assert reason == "it is a HEIC file, a format that is not read; convert it to JPEG or PNG"


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    forms = tuple(unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    fill(tmp_path, classes=(*forms, "tea"))
    with pytest.raises(InputError, match="two folders called café, in two forms of Unicode"):
        load_data(f"folder:{tmp_path}", **SMALL)


def few(classes: int, each: int) -> list[tuple[np.ndarray, int]]:
    pixels = np.random.default_rng(0).integers(0, 256, (classes * each, 8, 8, 3), dtype=np.uint8)
    return [(image, index % classes) for index, image in enumerate(pixels)]


@pytest.mark.parametrize(("classes", "each", "held"), [(100, 8, 100), (100, 5, 50), (40, 2, 8)])
def test_few_images_of_each_class_leave_some_to_validate_on(
    classes: int, each: int, held: int
) -> None:
    """A tenth of the set, spread over the classes: as evenly as whole images allow."""
    data = load_data((few(classes, each), few(classes, 1)), **SMALL)
    assert len(data.validation) == held
    counts = np.bincount(data.validation.labels, minlength=classes)
    assert counts.max() == 1
    assert np.bincount(data.train.labels, minlength=classes).min() == each - 1
    assert [notice for notice in data.notices if "too small" in notice] == list(
        data.notices if each < 8 else ()
    )
    again = load_data((few(classes, each), few(classes, 1)), **SMALL)
    assert again.validation.labels.tolist() == data.validation.labels.tolist()
    other = load_data((few(classes, each), few(classes, 1)), data_seed=1, **SMALL)
    if each < 8:
        assert other.validation.labels.tolist() != data.validation.labels.tolist()


def test_a_hundred_classes_of_eight_are_split_three_ways() -> None:
    data = load_data({"train": few(100, 8)}, **SMALL)
    assert sizes(data) == (500, 100, 200)
    three = load_data({"train": few(100, 3)}, **SMALL)
    assert sizes(three) == (180, 20, 100)
    assert np.bincount(three.train.labels).min() == 1


def test_a_large_share_leaves_every_class_an_image(tmp_path: Path) -> None:
    data = load_data((few(10, 20), few(10, 2)), **SMALL)
    held = hold_out_validation(data, 0.99, 0)
    assert np.bincount(held.train.labels, minlength=10).min() >= 1
    assert any("every class has images left" in notice for notice in held.notices)
