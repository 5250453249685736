"""Tables of labels as spreadsheets, pandas and challenges write them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from attention_transfer.cli import main
from attention_transfer.data import DataSet, load_data
from attention_transfer.errors import InputError
from test_folders import write

SMALL = {"image_size": (8, 8)}
KINDS = ("ant", "bee", "cat")


def images(folder: Path, count: int = 30) -> list[str]:
    for index in range(count):
        write(folder / f"{index:03}.png", index, (8, 8))
    return [f"{index:03}.png" for index in range(count)]


def table(folder: Path, header: str, row: Callable[[int, str], str]) -> Path:
    lines = [header, *(row(index, name) for index, name in enumerate(images(folder)))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "labels.csv"


def plain(folder: Path) -> Path:
    return table(folder, "filename,label", lambda index, name: f"{name},{KINDS[index % 3]}")


def all_labels(data: DataSet) -> dict[str, object]:
    """The label of each image by its number, as text or as a list of marks."""
    return {
        Path(path).stem: label if isinstance(label, list) else data.class_names[label]
        for part in (data.train, data.validation, data.test)
        for path, label in zip(part.paths, part.labels.tolist(), strict=True)
    }


EXPECTED = {f"{index:03}": KINDS[index % 3] for index in range(30)}


@pytest.mark.parametrize(
    "spelling", ["./000.png", "{folder}/000.png", "..\\photos\\000.png", "000"]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_image_of_two_labels_by_another_spelling_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: str, split: str
) -> None:
    file = table(
        tmp_path / "photos",
        "filename,label,split",
        lambda index, name: f"{name},{KINDS[index % 3]},{'test' if index > 20 else 'train'}",
    )
    again = spelling.format(folder=file.parent)
    with file.open("a") as lines:
        lines.write(f"{again},cat,{split}\n")
    assert main(["train", "--model", "wrn-10-1", "--data", f"csv:{file}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"as 'ant' in train, and as 'cat' in {split}, by the path {again}; list" in line
    assert not Path("runs").exists()


def test_one_image_of_one_label_by_another_spelling_is_left_out(tmp_path: Path) -> None:
    file = plain(tmp_path / "photos")
    with file.open("a") as lines:
        lines.write("./000.png,ant\n")
    data = load_data(f"csv:{file}", **SMALL)
    assert all_labels(data) == EXPECTED
    assert len(data.train) + len(data.validation) + len(data.test) == 30
    assert any("has 1 images twice (./000.png)" in notice for notice in data.notices)


def test_columns_and_classes_are_named(tmp_path: Path) -> None:
    file = table(
        tmp_path / "photos",
        "filename,label,is_valid,fold,category",
        lambda index, name: f"{name},{KINDS[index % 3]},{index % 5 == 0},{index % 4},x",
    )
    data = load_data(f"csv:{file}", **SMALL)
    assert data.notices == (
        "labels.csv: images are in the column 'filename', labels in 'label'; 3 classes: ant, bee, "
        "cat",
        "labels.csv: columns that are not read: is_valid, fold, category; is_valid looks like the "
        "splits: --columns split=is_valid uses it; fold may tell the splits: to use it, write "
        "train, validation or test for each image into a column split",
    )
    chosen = load_data(f"csv:{file}", columns="split=is_valid", **SMALL)
    assert sorted(Path(path).stem for path in chosen.test.paths) == [
        f"{index:03}" for index in range(0, 30, 5)
    ]
    assert len(chosen.train) + len(chosen.validation) == 24


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "photos", "filename,label,label", lambda index, name: f"{name},1,2")
    with pytest.raises(InputError, match="several columns with the name label; give each a name"):
        load_data(f"csv:{file}", **SMALL)


def test_whole_numbers_with_a_point_are_integers(tmp_path: Path) -> None:
    """pandas writes integers as floating-point numbers where a column has gaps."""
    file = table(
        tmp_path / "photos",
        "filename,label",
        lambda index, name: f"{name},{10 - index % 3}{('.0', '')[index % 2]}",
    )
    data = load_data(f"csv:{file}", label_offset=8, **SMALL)
    assert data.class_names == ("8", "9", "10")
    assert all_labels(data) == {f"{index:03}": str(10 - index % 3) for index in range(30)}


def commented(text: str) -> bytes:
    header, *rows = text.splitlines()
    lines = ["# animals, seen in 2024", "#", header, *rows[:3], "#040.png,dog", *rows[3:]]
    return "\n".join(lines).encode()


def spaced(text: str) -> bytes:
    return text.replace(",", ', "').replace("\n", '"\n').encode()


@pytest.mark.parametrize(
    "written",
    [
        commented,
        spaced,
        lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode(),
        lambda text: f"{text},\n".encode(),
    ],
)
def test_tables_are_read_as_programs_write_them(
    tmp_path: Path, written: Callable[[str], bytes]
) -> None:
    file = plain(tmp_path / "photos")
    file.write_bytes(written(file.read_text()))
    data = load_data(f"csv:{file}", **SMALL)
    assert data.class_names == KINDS
    assert all_labels(data) == EXPECTED
    said = " ".join(data.notices)
    assert ("3 lines that begin with # are comments" in said) == (written is commented)


def test_an_image_whose_name_begins_like_a_comment_is_an_image(tmp_path: Path) -> None:
    file = plain(tmp_path / "photos")
    write(file.parent / "#1.png", 99, (8, 8))
    with file.open("a") as lines:
        lines.write("#1.png,bee\n")
    assert all_labels(load_data(f"csv:{file}", **SMALL)) == EXPECTED | {"#1": "bee"}


def test_a_column_for_each_class_holds_the_labels(tmp_path: Path) -> None:
    def marks(index: int, name: str) -> str:
        return ",".join([name, *("1.0" if index % 3 == kind else "0.0" for kind in (2, 0, 1))])

    file = table(tmp_path / "photos", "image,cat,ant,bee", marks)
    data = load_data(f"csv:{file}", **SMALL)
    assert data.class_names == ("cat", "ant", "bee")
    assert all_labels(data) == EXPECTED
    (notice,) = (notice for notice in data.notices if "in the columns" in notice)
    assert "labels in the columns cat, ant, bee, with 0 and 1; 3 classes" in notice
    with pytest.raises(InputError, match=r"a column for each class .* leave out the label offset"):
        load_data(f"csv:{file}", label_offset=1, **SMALL)


def test_columns_of_several_classes_an_image_mark_each(tmp_path: Path) -> None:
    """Columns may be named by numbers."""
    file = table(
        tmp_path / "photos",
        "image,1,2,3",
        lambda index, name: f"{name},{index % 2},{index % 3 // 2},1",
    )
    data = load_data(f"csv:{file}", **SMALL)
    assert data.class_names == ("1", "2", "3")
    assert all_labels(data) == {
        f"{index:03}": [float(index % 2), float(index % 3 // 2), 1.0] for index in range(30)
    }


@pytest.mark.parametrize(
    ("header", "row", "match"),
    [
        ("image,a,b,age", "1,1,{index}", r"several columns of 0 and 1 \(a, b\), .*others \(age\)"),
        ("image,a,is_valid", "1,0", "none of a usual name for the label"),
        ("image,age,name", "{index},x{index}", "none of a usual name for the label"),
    ],
)
def test_unclear_columns_of_classes_are_refused(
    tmp_path: Path, header: str, row: str, match: str
) -> None:
    file = table(
        tmp_path / "photos", header, lambda index, name: f"{name},{row.format(index=index + 2)}"
    )
    with pytest.raises(InputError, match=match):
        load_data(f"csv:{file}", **SMALL)


def test_rows_that_are_too_long_are_named_by_their_line(tmp_path: Path) -> None:
    file = plain(tmp_path / "photos")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["# made by hand", *lines[:4], "", "000.png,ant,3", *lines[4:]]))
    with pytest.raises(InputError, match=re.escape(f"row 7 of {file} has 3 values, expected 2")):
        load_data(f"csv:{file}", **SMALL)
