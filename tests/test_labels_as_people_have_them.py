"""Labels in tables, of any kind, and the order of classes: from the command line and Python."""

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.errors import InputError
from attention_transfer.training.classification_metrics import compute_metrics
from test_folders import write

SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "fp32", "lr": 0.02}
SMALL = {"image_size": (8, 8)}


def table(folder: Path, header: str, rows: list[str], name: str = "labels.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def images(folder: Path, count: int) -> list[str]:
    for index in range(count):
        write(folder / f"{index:03}.png", index, (8, 8))
    return [f"{index:03}.png" for index in range(count)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that refuses its input, and return its one line."""
    assert main(["train", "--model", "wrn-10-1", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert not Path("runs").exists()
    return lines[0]


def samples(labels: list[Any]) -> list[tuple[np.ndarray, Any]]:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return list(zip(pixels, labels, strict=True))


def test_a_table_names_images_labels_and_splits(tmp_path: Path) -> None:
    names = images(tmp_path / "photos" / "images", 24)
    rows = [
        f"{('train', 'train', 'dev', 'test1')[index % 4]},{('cat', 'dog', 'ant')[index % 3]},"
        f"images/{name}"
        for index, name in enumerate(names)
    ]
    file = table(tmp_path / "photos", "Split,Class Name,File Name", rows)
    data = load_data(f"csv:{file}", **SMALL)
    assert data.class_names == ("ant", "cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 6, 6]
    for index, path in enumerate(data.train.paths):
        number = int(Path(path).stem)
        assert data.class_names[data.train.labels[index]] == ("cat", "dog", "ant")[number % 3]
    other = table(tmp_path / "photos", "a;b;c", [row.replace(",", ";") for row in rows], "x.tsv")
    chosen = load_data(f"csv:{other}", columns={"image": "c", "label": "b", "split": "a"}, **SMALL)
    assert chosen.test.paths == data.test.paths
    assert torch.equal(chosen.test.labels, data.test.labels)


def test_a_table_without_splits_is_shared_out_by_seed_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = images(tmp_path / "photos", 30)
    rows = [f"{Path(name).stem},{('1', '2', '10')[index % 3]}" for index, name in enumerate(names)]
    table(tmp_path / "photos", "id,species", rows)
    arguments = ["--data", f"csv:{tmp_path}/photos/labels.csv", "--columns", "image=id"]
    command = ["train", "--model", "wrn-10-1", "--image-size", "16", "--epochs", "1"]
    assert main([*command, *arguments, "--batch-size", "8", "--out", "run", "--no-report"]) == 0
    printed = capsys.readouterr()
    assert "has the labels 1, 2, 10: they are the 3 classes 0 to 2" in printed.out + printed.err
    assert json.loads(Path("run/model.json").read_text())["class_names"] == ["1", "2", "10"]
    record = json.loads(Path("run/record.json").read_text())
    assert [record["data"][split]["images"] for split in ("train", "validation", "test")] == [
        21,
        3,
        6,
    ]
    assert main(["evaluate", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6


def test_a_folder_with_a_table_is_found(tmp_path: Path) -> None:
    names = images(tmp_path / "photos" / "train", 20)
    rows = [f"train/{name},{index % 2}" for index, name in enumerate(names)]
    table(tmp_path / "photos", "filename,label", rows)
    data = load_data(f"folder:{tmp_path / 'photos'}", **SMALL)
    assert data.class_names == ("0", "1")
    assert f"are those in {tmp_path}/photos/labels.csv" in data.notices[0]
    assert len(data.train) + len(data.validation) + len(data.test) == 20


def test_several_labels_of_an_image_are_learned_each_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red, green and blue are on or off: learned, their decisions are right."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(80):
        on = generator.random(3) < 0.5
        (tmp_path / "photos").mkdir(exist_ok=True)
        pixels = np.where(on, 220, 20) + generator.integers(0, 20, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{index}.png")
        rows.append(f"{index}.png,{'; '.join(np.array(['red', 'green', 'blue'])[on])}")
    file = table(tmp_path / "photos", "filename,labels", rows)
    run = at.train(
        "wrn-10-1",
        data=f"csv:{file}",
        out="run",
        image_size=16,
        **{**SETTINGS, "epochs": 5, "lr": 0.1},
    )
    assert list(run.metrics[-1].terms) == ["binary_cross_entropy"]
    assert run.record.final.test_error < 10 < run.metrics[0].train_error
    assert run.class_names == ["blue", "green", "red"]
    assert any("several classes" in notice for notice in run.record.data.notices)
    assert (run.folder / "report.html").is_file()
    data = load_data(f"csv:{file}", **SMALL)
    logits = torch.randn(len(data.test), 3, generator=torch.Generator().manual_seed(0))
    figures = compute_metrics(logits, data.test.labels)
    wrong = (logits.numpy() > 0) != (data.test.labels.numpy() == 1)
    assert figures.error == pytest.approx(100 * wrong.mean())
    expected = np.logaddexp(0, logits.double().numpy()) - logits.numpy() * data.test.labels.numpy()
    assert figures.loss == pytest.approx(expected.mean(), rel=1e-5)
    assert main(["evaluate", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == pytest.approx(
        run.record.final.test_error
    )
    distilled = ["distill", "--teacher", "run", "--student", "wrn-10-1", "--data", f"csv:{file}"]
    assert main([*distilled, "--kd-alpha", "0.5", "--image-size", "16"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "several classes each, and knowledge_distillation is for images of one" in line
    student = at.distill(
        teacher=run,
        student="wrn-10-1",
        data=f"csv:{file}",
        image_size=16,
        out="student",
        mixup=0.2,
        **SETTINGS,
    )
    assert student.record.teacher is not None
    assert student.record.teacher.test_error == pytest.approx(run.record.final.test_error)


@pytest.mark.parametrize(
    ("header", "row", "extra", "match"),
    [
        ("filename,label", "gone.png,cat", [], "1 of 13 images .* are not in .*: gone.png"),
        ("filename,label", "000.png,dog", [], r"has the image 000.png as 'cat' .* and as 'dog'"),
        ("filename,label", "a.png,cat,3", [], "row 14 of .* has 3 values, expected 2"),
        ("filename,kind", "000.png,cat", [], "none of a usual name for the label; .*--columns"),
        ("filename,label", "000.png,cat", ["--columns", "label=klass"], "no column 'klass'"),
        ("filename,label", "000.png,cat", ["--columns", "name=a"], "columns names 'name'"),
        ("filename,split", "000.png,cat", ["--columns", "label=split"], "has cat, dog in its col"),
        ("000.png,cat", "001.png,dog", [], "first line of .* is an image"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    header: str,
    row: str,
    extra: list[str],
    match: str,
) -> None:
    names = images(tmp_path / "photos", 12)
    rows = [f"{name},{('cat', 'dog')[index % 2]}" for index, name in enumerate(names)]
    file = table(tmp_path / "photos", header, [*rows, row])
    line = refused(capsys, "--data", f"csv:{file}", *extra)
    assert re.search(match, line), line


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("photos", "did you mean folder:photos?"),
        ("./photos", "did you mean folder:./photos?"),
        ("photos/labels.csv", "did you mean csv:photos/labels.csv?"),
        ("json:photos", "unknown data 'json:photos'; did you mean folder:photos?"),
        ("csv", "did you mean csv:FILE?"),
        ("antigravity:fly", "unknown data 'antigravity:fly'"),
        ("xml.dom:Node", "unknown data 'xml.dom:Node'"),
        ("parquet:x", "unknown data 'parquet:x'"),
        ("imagenet", "did you mean imagenet:DIR?"),
        ("folder:~nobody-here/x", "no home folder for '~nobody-here'"),
    ],
)
def test_a_word_before_the_colon_is_never_imported_by_surprise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, hint: str
) -> None:
    table(tmp_path / "photos", "filename,label", [])
    before = set(sys.modules)
    assert hint in refused(capsys, "--data", data)
    assert not {"antigravity", "xml.dom"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("labels", "names", "coded"),
    [
        ([1, 2, 3], ("1", "2", "3"), [0, 1, 2]),
        ([3, 7, 281, 999], ("3", "7", "281", "999"), [0, 1, 2, 3]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        (["dog", "cat"], ("cat", "dog"), [1, 0]),
        ([np.str_("b"), "a"], ("a", "b"), [1, 0]),
        ([0, 1, 2], ("0", "1", "2"), [0, 1, 2]),
    ],
)
def test_labels_become_classes_and_it_is_said(
    labels: list[Any], names: tuple[str, ...], coded: list[int]
) -> None:
    data = load_data((samples(labels * 10), samples(labels * 3)), **SMALL)
    assert data.class_names == names
    assert data.test.labels.tolist() == coded * 3
    numbers = not isinstance(labels[0], str) and coded != labels
    assert [("they are the" in notice) for notice in data.notices] == [True] * numbers


def test_an_offset_makes_labels_indices(capsys: pytest.CaptureFixture[str]) -> None:
    sets = samples([1, 2, 4] * 10), samples([1, 2, 4] * 3)
    data = load_data(sets, label_offset=1, **SMALL)
    assert data.class_names == ("1", "2", "3", "4")
    assert data.test.labels.tolist() == [0, 1, 3] * 3
    with pytest.raises(InputError, match=r"labels from 1 to 4, expected 2 to 4, as the label"):
        load_data(sets, label_offset=2, **SMALL)
    line = refused(capsys, "--data", "cluttered-digits", "--label-offset", "1")
    assert "leave out label_offset" in line


def test_a_split_without_labels_is_said_to_be_none() -> None:
    """Hugging Face's imagenet-1k has a test split of labels -1."""
    parts = {
        "train": samples([0, 1] * 10),
        "validation": samples([0, 1] * 4),
        "test": samples([-1] * 6),
    }
    data = load_data(parts, **SMALL)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 8]
    assert "data test has no labels" in data.notices[0]
    unnamed = load_data((samples(["a", "b"] * 10), samples([None] * 5)), **SMALL)
    assert "data test has no labels" in unnamed.notices[0]
    for partly in ([0, -1], ["a", None], [3, -1], [0, None]):
        with pytest.raises(InputError, match="train has 5 samples without a label"):
            load_data((samples([*partly, partly[0]] * 5), samples([partly[0]] * 3)), **SMALL)


def folder_of(root: Path, names: list[str], count: int = 8) -> str:
    for label, name in enumerate(names):
        for index in range(count):
            write(root / name / f"{index}.png", 100 * label + index, (8, 8))
    return f"folder:{root}"


def test_natural_order_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    data = folder_of(tmp_path / "photos", names)
    default = load_data(data, **SMALL)
    assert default.class_names == tuple(sorted(names))
    (notice,) = (line for line in default.notices if "--class-order natural" in line)
    assert "0, 1, 10, 11, 2" in notice
    natural = load_data(data, class_order="natural", **SMALL)
    assert natural.class_names == tuple(names)
    assert natural.notices == load_data(data, class_order="string", **SMALL).notices
    for chosen, plain in ((natural.train, default.train), (natural.test, default.test)):
        assert chosen.paths == plain.paths
        assert [str(label) for label in chosen.labels.tolist()] == [
            path.partition("/")[0] for path in chosen.paths
        ]


@pytest.mark.parametrize("kind", ["txt", "list", "indices", "names"])
def test_a_class_map_file_gives_the_order(tmp_path: Path, kind: str) -> None:
    order = ["dog", "unseen", "ant", "cat"]
    data = folder_of(tmp_path / "photos", ["ant", "cat", "dog"])
    file = tmp_path / f"classes.{'txt' if kind == 'txt' else 'json'}"
    value: Any = {
        "list": order,
        "indices": {str(index): [name, "a name"] for index, name in enumerate(order)},
        "names": {name: index for index, name in enumerate(order)},
    }.get(kind)
    file.write_text("\n".join(order) if kind == "txt" else json.dumps(value))
    loaded = load_data(data, class_order=str(file), **SMALL)
    assert loaded.class_names == tuple(order)
    assert all(
        path.startswith(order[label])
        for path, label in zip(loaded.train.paths, loaded.train.labels.tolist(), strict=True)
    )
    file.write_text("ant\ncat\n" if kind == "txt" else '["ant", "cat"]')
    with pytest.raises(InputError, match=r"lacks 1 of the 3 classes .*: dog"):
        load_data(data, class_order=str(file), **SMALL)
    file.write_text("ant\ncat\nant\n" if kind == "txt" else '{"ant": 0, "cat": 2}')
    with pytest.raises(InputError, match="is no class map"):
        load_data(data, class_order=str(file), **SMALL)
    with pytest.raises(InputError, match="neither string nor natural"):
        load_data(data, class_order="natrual", **SMALL)


def test_a_trained_networks_classes_are_those_of_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colours in two orders: labels follow the network that knows them."""
    colours = {"1": (250, 0, 0), "2": (0, 250, 0), "10": (0, 0, 250)}
    for name, colour in colours.items():
        for index in range(12):
            path = tmp_path / "photos" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).integers(0, 60, (16, 16, 3))
            Image.fromarray((noise + np.array(colour) * 0.7).astype(np.uint8)).save(path)
    data = f"folder:{tmp_path / 'photos'}"
    settings = {**SETTINGS, "image_size": 16, "data": data, "report": False}
    teacher = at.train(
        "wrn-10-1", out="teacher", class_order="natural", **{**settings, "epochs": 4, "lr": 0.1}
    )
    assert teacher.class_names == ["1", "2", "10"]
    assert teacher.record.final.test_error == 0
    for model in ("teacher", "wrn-10-1@teacher/model.safetensors"):
        arguments = ["evaluate", model, "--data", data, "--image-size", "16"]
        assert main([*arguments, "--class-order", "string", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["error"] == 0
        assert "classes in another order" in printed.err
    student = at.distill(
        teacher=teacher, student="wrn-10-1", out="s", kd_alpha=0.5, cache="cache", **settings
    )
    notices = student.record.data.notices
    assert [("another order" in notice) for notice in notices] == [True]
    assert student.class_names == ["1", "2", "10"]
    assert student.record.teacher is not None
    assert student.record.teacher.test_error == 0
    other = at.train("wrn-10-1", out="other", class_order="string", **settings)
    with pytest.raises(InputError, match="labels can follow one of them"):
        at.distill(teacher=[teacher, other], student="wrn-10-1", out="x", **settings)
    tuned = at.train(teacher, out="tuned", **settings)
    assert tuned.class_names == ["1", "2", "10"]
    half = {**settings, "data": folder_of(tmp_path / "half", ["1", "2", "3"])}
    with pytest.raises(InputError, match="of which 2 are the same"):
        at.distill(teacher=teacher, student="wrn-10-1", out="x", kd_alpha=0.5, **half)
    assert not Path("x").exists()


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_hugging_faces_library_reads_columns_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = images(tmp_path / "images", 20)
    contents = [
        {"bytes": (tmp_path / "images" / name).read_bytes(), "path": None} for name in names
    ]
    kinds = [("dog", "cat")[index % 2] for index in range(20)]
    places = ["train" if index < 14 else "test" for index in range(20)]
    whole = datasets.Dataset.from_dict({"picture": contents, "animal": kinds, "fold": places})
    if kind == "parquet":
        whole.to_parquet(tmp_path / "set.parquet")
        where = tmp_path / "set.parquet"
    else:
        whole.save_to_disk(tmp_path / "set")
        where = tmp_path / "set"
    columns = "image=picture,label=animal"
    data = load_data(f"hf:{where}", columns=f"{columns},split=fold", **SMALL)
    assert data.class_names == ("cat", "dog")
    assert len(data.test) == 6
    assert data.test.labels.tolist() == [index % 2 == 0 for index in range(14, 20)]
    assert len(load_data(f"hf:{where}", columns=columns, **SMALL).test) == 4
    with pytest.raises(InputError, match=r"none of a usual name for the image; .*--columns image="):
        load_data(f"hf:{where}", **SMALL)


def test_names_of_files_are_found_in_any_form_of_unicode(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    rows = []
    for index in range(20):
        write(tmp_path / "photos" / f"{split} {index}.png", index, (8, 8))
        rows.append(f"{composed} {index}.png,{index % 2}")
    file = table(tmp_path / "photos", "filename,label", rows)
    assert len(load_data(f"csv:{file}", **SMALL).train) == 14
    folder_of(tmp_path / "two" / "train", [composed, "tea"])
    folder_of(tmp_path / "two" / "val", [split, "tea"], count=2)
    data = load_data(f"folder:{tmp_path / 'two'}", **SMALL)
    assert data.class_names == tuple(sorted([composed, "tea"]))
    assert np.bincount(data.test.labels).tolist() == [2, 2]


def test_home_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "x" / "train", ["a", "b"])
    folder_of(tmp_path / "x" / "val", ["a", "b"])
    table(tmp_path / "x", "file,label", [f"train/{n}/{i}.png,{n}" for n in "ab" for i in range(8)])
    for name in ("imagenet:~/x", "folder:~/x", "csv:~/x/labels.csv"):
        assert load_data(name, **SMALL).class_names == ("a", "b")
    with pytest.raises(InputError, match=f"no whole cifar10 in {tmp_path}/x"):
        load_data("cifar10:~/x")
