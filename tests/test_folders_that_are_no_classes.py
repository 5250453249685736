"""Folders beside each other that are no classes: splits, masks, folds, links and wrappers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.errors import InputError
from test_folders import CLASSES, fill, write

SMALL = {"image_size": (8, 8)}


def splits_inside(root: Path, names: tuple[str, ...] = ("train", "val", "test")) -> Path:
    """Write classes that hold the splits: 6 images to train on, 3 in each other split."""
    for label, name in enumerate(CLASSES):
        for number, split in enumerate(names):
            for index in range(3 if number else 6):
                path = root / name / split / f"{index}.png"
                write(path, 1000 * label + 100 * number + index)
    return root


def test_splits_inside_the_classes_are_the_splits(tmp_path: Path) -> None:
    root = splits_inside(tmp_path / "photos")
    write(root / "cat" / "extra.png", 7)
    (root / "dog" / "train" / "notes.txt").write_text("notes")
    data = load_data(f"folder:{root}", **SMALL)
    assert data.class_names == CLASSES
    for part, name, each in (
        (data.train, "train", 6),
        (data.validation, "val", 3),
        (data.test, "test", 3),
    ):
        assert np.bincount(part.labels).tolist() == [each] * 3
        assert {Path(path).parts[1] for path in part.paths} == {name}
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            assert Path(path).parts[0] == CLASSES[label]
    said = " ".join(data.notices)
    assert "hold the splits train, validation, test each" in said
    assert "left out of" in said
    assert "cat/extra.png" in said
    assert "dog/train/notes.txt" in said


def test_a_class_without_a_split_that_others_hold_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = splits_inside(tmp_path / "photos")
    fill(root, 4, ("emu",))
    (root / "cat" / "test").rename(tmp_path / "elsewhere")
    assert main(["train", "--model", "wrn-10-1", "--data", f"folder:{root}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "but cat lacks test, emu lacks train, validation, test; give each class" in line
    assert not Path("runs").exists()


def test_a_single_subfolder_of_a_splits_name_is_no_split(tmp_path: Path) -> None:
    """A class of vehicles may have its trains in a folder."""
    fill(tmp_path, 4, ("bird", "cat"))
    for name in ("train", "car"):
        fill(tmp_path / "vehicle", 4, (name,), start=5000 if name == "car" else 6000)
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert data.class_names == ("bird", "cat", "vehicle")
    assert sum(map(len, (data.train, data.validation, data.test))) == 16


def masks(root: Path) -> None:
    for index in range(6):
        write(root / "images" / f"{index}.png", index)
        write(root / "masks" / f"{index}_mask.png", 100 + index)


def yolo(root: Path) -> None:
    for split in ("train", "val"):
        write(root / "images" / split / "1.png", 1)
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "1.txt").write_text("0 .5 .5 .1 .1")


def roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        write(root / split / "images" / "1.png", 1)
        (root / split / "labels").mkdir(parents=True)
        (root / split / "labels" / "1.txt").write_text("0 .5 .5 .1 .1")


def annotated(root: Path) -> None:
    fill(root / "images")
    (root / "annotations").mkdir()
    (root / "annotations" / "00.xml").write_text("<a/>")


def folds(root: Path) -> None:
    for number in range(3):
        fill(root / f"fold{number}", 2, start=100 * number)


def folds_with_splits(root: Path) -> None:
    for number in range(2):
        fill(root / f"split_{number}", 2, ("train", "val"), start=100 * number)


def named_masks(root: Path) -> None:
    for index in range(6):
        write(root / "train" / "imgs" / f"img_{index}.png", index)
        write(root / "train" / "ground_truth" / f"gt_{index}.png", 100 + index)


def data_sets(root: Path) -> None:
    for number, name in enumerate(("home", "office")):
        for split in ("train", "test"):
            fill(root / name / split, 2, start=100 * number)


def linked_class(root: Path) -> None:
    fill(root)
    (root / "kitten").symlink_to(root / "cat", target_is_directory=True)


def linked_split(root: Path) -> None:
    fill(root / "train")
    (root / "test").symlink_to(root / "train", target_is_directory=True)


def linked_file(root: Path) -> None:
    fill(root)
    (root / "dog" / "linked.png").symlink_to(root / "cat" / "03.png")


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (masks, "masks beside images, .*names of those: they are no classes; .*{root}/images as c"),
        (yolo, "labels beside images, with no images, but what .* as csv:FILE"),
        (roboflow, "train holds labels beside images"),
        (annotated, "annotations beside images.* give folder:{root}/images"),
        (folds, r"fold0, fold1, fold2, .*\(bird, cat, dog\): parts .* give .*folder:{root}/fold0"),
        (folds_with_splits, r"split_0, split_1, and each of them the same .*\(train, val\)"),
        (named_masks, "train holds ground_truth beside imgs, with images with the names of those"),
        (data_sets, "home/train holds bird, cat, dog: if .* give folder:{root}/home;"),
        (lambda root: fill(root / "images"), "3 subfolders .* give folder:{root}/images, if"),
        (lambda root: fill(root / "a" / "b" / "c"), "give folder:{root}/a/b/c, if"),
        (lambda root: fill(root / "a" / "train"), "give folder:{root}/a, if"),
        (lambda root: fill(root / "train" / "a"), "move the subfolders of a straight into"),
        (linked_class, r"{root}/cat/00.png as 'cat' .* as 'kitten' .*kitten/00.png \(and 9 more"),
        (linked_split, "as 'bird' in train, and as 'bird' in test, by the path {root}/test/"),
        (linked_file, "cat/03.png as 'cat' in train, and as 'dog' in train, by .*linked.png; rem"),
    ],
)
def test_folders_that_are_no_classes_are_refused(
    tmp_path: Path, layout: Callable[[Path], object], expected: str
) -> None:
    root = tmp_path / "photos"
    layout(root)
    with pytest.raises(InputError, match=expected.format(root=root)):
        load_data(f"folder:{root}", **SMALL)


def test_a_link_to_an_image_of_the_same_class_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "cat" / "again.png").symlink_to(tmp_path / "cat" / "03.png")
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert sum(map(len, (data.train, data.validation, data.test))) == 30
    assert any("has 1 images twice" in notice for notice in data.notices)


def test_classes_with_names_of_companions_are_classes(tmp_path: Path) -> None:
    """Masks on faces, and parts of pages."""
    fill(tmp_path / "faces", classes=("mask", "no_mask"))
    assert load_data(f"folder:{tmp_path / 'faces'}", **SMALL).class_names == ("mask", "no_mask")
    fill(tmp_path / "pages", classes=("image", "label", "text"))
    assert len(load_data(f"folder:{tmp_path / 'pages'}", **SMALL).class_names) == 3


def test_the_same_subfolders_in_each_class_are_said(tmp_path: Path) -> None:
    for number, name in enumerate(("good", "broken")):
        fill(tmp_path / name, 10, ("left", "right"), start=100 * number)
    data = load_data(f"folder:{tmp_path}", **SMALL)
    assert data.class_names == ("broken", "good")
    (notice,) = data.notices
    assert "broken, good" in notice
    assert f"(left, right); if those are the classes, give folder:{tmp_path / 'broken'}" in notice
