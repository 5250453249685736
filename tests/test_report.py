"""The report: its numbers against independent oracles, its texts, and the input it refuses."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

import attention_transfer as at
from attention_transfer.cli import COMMANDS, main
from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.drawing.curves import Line, draw_curves
from attention_transfer.drawing.scale import colour_table, cosine_similarity, downsample
from attention_transfer.drawing.sprites import coloured_map, map_sprite
from attention_transfer.report.command_line import command_line
from attention_transfer.report.comparison import compare_answers, headline
from attention_transfer.report.confusion import confusion
from attention_transfer.report.groups import group_runs, wilson_interval
from attention_transfer.report.viewer import _View, viewer_data
from attention_transfer.report.warnings import run_warnings
from attention_transfer.runs import Run, read_runs
from conftest import SMALL
from made_runs import EPOCHS, PROBES, made_run, one_position_maps

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


class _Text(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*folders: Path) -> str:
    return at.write_report(list(folders)).read_text(encoding="utf-8")


def pixels_of(address: str) -> np.ndarray[Any, Any]:
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    return made_run(tmp_path / "alone", wrong=tuple(range(12)))


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    return made_run(tmp_path / "at", teacher="runs/teacher", wrong=tuple(range(9, 15)))


@given(st.integers(1, 5000), st.data())
def test_the_interval_is_wilsons(images: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, images))
    oracle = binomtest(wrong, images).proportion_ci(method="wilson")
    low, high = wilson_interval(100 * wrong / images, images, z=1.959963984540054)
    assert (low, high) == pytest.approx((100 * oracle.low, 100 * oracle.high), abs=1e-9)


def test_the_headline_states_the_gain(alone: Path, taught: Path) -> None:
    assert headline(group_runs(read_runs([alone, taught]))) == (
        "On 100 test images of pets, wrn-10-1 has 12.0 % error alone; distilled from wrn-16-2, it "
        "has 6.0 % with AT (no difference can be told)."
    )
    better = made_run(taught.with_name("better"), teacher="runs/teacher", wrong=(0, 1, 2))
    assert "it has 3.0 % with AT (75 % fewer mistakes)" in headline(
        group_runs(read_runs([alone, better]))
    )
    assert "wrn-10-1 alone has 12.0 % error" in headline(group_runs(read_runs([alone])))
    assert "wrn-10-1 with AT has 6.0 % error (teacher wrn-16-2)" in headline(
        group_runs(read_runs([taught]))
    )


def test_over_seeds_a_gain_is_said_where_its_interval_excludes_zero(tmp_path: Path) -> None:
    errors = {"alone": (20, 22, 21), "t": (10, 12, 12), "u": (20, 25, 16)}
    folders: dict[str, list[Path]] = {
        teacher: [
            made_run(
                tmp_path / f"{teacher}-{seed}",
                teacher=None if teacher == "alone" else teacher,
                wrong=tuple(range(count)),
                seed=seed,
            )
            for seed, count in enumerate(counts)
        ]
        for teacher, counts in errors.items()
    }
    clear, unclear = (
        headline(group_runs(read_runs([*folders["alone"], *folders[teacher]])))
        for teacher in ("t", "u")
    )
    assert "11.33 % with AT (46 % fewer mistakes)" in clear
    assert "20.33 % with AT (no difference can be told)" in unclear


def test_seeds_are_one_group_with_their_spread(tmp_path: Path) -> None:
    seeds = [
        made_run(tmp_path / f"seed-{seed}", seed=seed, wrong=tuple(range(count)))
        for seed, count in enumerate((10, 12, 17))
    ]
    other = made_run(tmp_path / "longer", epochs=8)
    groups = group_runs(read_runs([*seeds, other]))
    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[0].error == pytest.approx(13.0)
    assert groups[0].spread_text == f"± {np.std([10, 12, 17], ddof=1):.2f} over 3 seeds"
    assert len({group.label for group in groups}) == 2


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"kd_alpha": 0.9}, "AT + KD"),
        ({"attention": "none", "kd_alpha": 0.9}, "KD"),
        ({"attention": "none", "gradient_beta": 0.1}, "gradient AT"),
        (
            {"attention": "none", "flip_symmetry_beta": 0.1, "input_gradient_norm_beta": 1.0},
            "flip symmetry + min-l2",
        ),
        ({"attention": "none", "full_activation_beta": 1.0}, "F-ActT"),
    ],
)
def test_methods_have_their_names(settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    (group,) = group_runs(read_runs([made_run(tmp_path / "run", teacher="t", **settings)]))
    assert group.label == f"wrn-10-1 with {method}"


def test_each_student_is_compared_with_itself_alone(tmp_path: Path) -> None:
    """Never with another network, and each with its own teacher."""
    runs = [
        made_run(tmp_path / "small", wrong=tuple(range(20))),
        made_run(tmp_path / "large", student="wrn-40-1", wrong=tuple(range(40))),
        made_run(tmp_path / "small-at", teacher="t", wrong=tuple(range(10))),
        made_run(tmp_path / "large-at", teacher="t", student="wrn-40-1", wrong=tuple(range(30))),
        made_run(tmp_path / "other", teacher="t", student="nin-thin", wrong=(1,)),
    ]
    groups = group_runs(read_runs(runs))
    assert headline(groups) == (
        "On 100 test images of pets, wrn-10-1 has 20.0 % error alone; distilled from wrn-16-2, it "
        "has 10.0 % with AT (50 % fewer mistakes). wrn-40-1 has 40.0 % error alone; distilled from "
        "wrn-16-2, it has 30.0 % with AT (25 % fewer mistakes). nin-thin with AT has 1.0 % error "
        "(teacher wrn-16-2)."
    )
    assert [(change.alone.student, change.corrected) for change in compare_answers(groups)] == [
        ("wrn-10-1", 10),
        ("wrn-40-1", 10),
    ]


def test_unequal_epochs_are_a_warning(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a", epochs=4), made_run(tmp_path / "b", teacher="t", epochs=40)]
    (warning,) = run_warnings(group_runs(read_runs(runs)))
    assert "trained for 4 epochs and wrn-10-1 with AT for 40" in warning


def test_labels_name_the_settings_that_differ(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / str(beta), teacher="t", beta=beta) for beta in (10, 1000)]
    labels = [group.label for group in group_runs(read_runs(runs))]
    assert labels == ["wrn-10-1 with AT, beta 10.0", "wrn-10-1 with AT, beta 1000.0"]


def test_one_seed_run_twice_is_no_spread_over_seeds(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name) for name in "ab"]
    (group,) = group_runs(read_runs(runs))
    assert group.spread_text == "± 0.00 over 2 runs"


def test_maps_of_other_functions_and_images_are_not_compared(tmp_path: Path) -> None:
    alone, taught = made_run(tmp_path / "a"), made_run(tmp_path / "b", teacher="t")
    record = json.loads((taught / "record.json").read_text())
    record["attention"] |= {"map": "max", "power": 4.0}
    (taught / "record.json").write_text(json.dumps(record))
    view = viewer_data(group_runs(read_runs([alone, taught])), ["cat", "dog", "owl"])
    assert view is not None
    assert view["runs"][1]["label"] == "wrn-10-1 alone"
    assert view["runs"][1]["points"][0]["teacher"] is None
    larger = made_run(tmp_path / "c", size=20)
    view = viewer_data(group_runs(read_runs([larger, taught])), ["cat", "dog", "owl"])
    assert view is not None
    assert [run["label"] for run in view["runs"]] == ["wrn-10-1 with AT"]
    assert view["skipped"] == ["wrn-10-1 alone"]
    assert "Not shown, because they followed other images" in _Text(page_of(larger, taught)).text


def test_cosines_do_not_depend_on_how_small_maps_are_shown(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agreement() -> list[list[float]]:
        view = viewer_data(group_runs(read_runs([taught])), ["cat", "dog", "owl"])
        assert view is not None
        point = view["runs"][0]["points"][0]
        sizes.append(point["sprite"]["height"])
        shown: list[list[float]] = point["agreement"]
        return shown

    sizes: list[int] = []
    whole = agreement()
    monkeypatch.setattr("attention_transfer.report.viewer._fit_into_page", lambda *_: _View(6, 2))
    assert agreement() == whole
    assert sizes == [8, 2]


def test_maps_that_are_not_finite_still_give_a_page(taught: Path) -> None:
    for path in taught.glob("attention/*.npz"):
        with np.load(path) as file:
            arrays = {name: file[name].copy() for name in file.files}
        for name in arrays:
            if "/" in name:
                arrays[name].reshape(-1)[:3] = [np.nan, np.inf, -np.inf]
        np.savez(path, **arrays)
    data = re.findall(r'type="application/json"[^>]*>(.*?)</script>', page_of(taught), re.DOTALL)
    shown = json.loads(data[0], parse_constant=lambda name: pytest.fail(name))
    assert len(shown["runs"][0]["points"]) == 2


def test_runs_of_other_classes_are_kept_apart(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b", classes=("x", "y", "z", "w", "v"))]
    assert "evaluated on 2 different sets" in _Text(page_of(*runs)).text


def test_the_top_is_the_coarsest_map_whatever_the_order(taught: Path) -> None:
    (run,) = read_runs([taught])
    kept = run.attention
    assert kept is not None
    assert kept.coarsest_point == "top"
    kept.points.reverse()
    for maps in kept.student_maps.values():
        maps.reverse()
    assert kept.coarsest_point == "top"
    assert kept.point_index("low") == 1
    assert kept.point_index("other") is None


def test_runs_may_be_given_in_any_form(taught: Path, alone: Path) -> None:
    for runs in (str(taught), taught, Run(taught), [Run(alone), str(taught)]):
        assert at.write_report(runs).is_file()


def test_a_report_that_fails_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, small_runs: None
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("attention_transfer.api.write_report", full)
    with pytest.warns(UserWarning, match=r"is finished, .* attention-transfer report run"):
        run = at.train(model="wrn-10-1", out="run", **{**SMALL, "epochs": 1, "report": True})
    assert run.test_error >= 0


def test_changed_answers_are_counted(alone: Path, taught: Path) -> None:
    (change,) = compare_answers(group_runs(read_runs([alone, taught])))
    assert (change.images, change.corrected, change.newly_wrong) == (100, 9, 3)
    assert change.examples == [(index, True) for index in range(9)]  # twelve were kept
    text = _Text(page_of(alone, taught)).text
    assert "Of 100 test images, 9 are corrected" in text
    assert "Corrected: 6 of 9" in text  # no newly wrong one was kept
    assert "Newly wrong:" not in text


def test_as_many_newly_wrong_images_are_shown_as_corrected_ones(tmp_path: Path) -> None:
    """Of the first twelve images, whose maps are kept, eight are corrected and two newly wrong."""
    alone = made_run(tmp_path / "alone", wrong=(*range(8), *range(20, 30)))
    taught = made_run(tmp_path / "at", teacher="t", wrong=(8, 9, 50, 51, 52))
    text = _Text(page_of(alone, taught)).text
    assert "18 are corrected" in text
    assert "Corrected: 2 of 18" in text
    assert "Newly wrong: 2 of 5" in text
    assert "as many of each, among the 10 of them whose maps were kept" in text


@pytest.mark.parametrize("teacher", [None, "runs/my teacher"])
def test_the_command_repeats_the_run(teacher: str | None, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "lr": 0.05,
        "nesterov": False,
        "seed": 3,
        "freeze": "conv1,layer[12]",
    }
    if teacher:
        settings |= {"kd_alpha": 0.5, "pairs": "auto-2"}
    (run,) = read_runs([made_run(tmp_path / "run", teacher=teacher, **settings)])
    name, *arguments = shlex.split(command_line(run.config.model_dump(mode="json")))[1:]
    parser = Parser(name, "", ())
    COMMANDS[name].add_arguments(parser)
    kind = DistillConfig if teacher else RunConfig
    again = config_from(parser.parse(arguments), kind)
    assert again == kind.checked(run.config.model_dump()).replace(out=None)


def test_a_sprite_holds_each_map_at_its_position() -> None:
    epochs = [one_position_maps(3, (2, 4), shift) for shift in (0, 5)]
    sprite = map_sprite(epochs, np.array([1.0, 2.0, 0.5]))
    pixels = pixels_of(str(sprite["data"]))
    assert pixels.shape == (4, 12)
    assert (sprite["height"], sprite["width"]) == (2, 4)
    for row, maps in enumerate(epochs):
        for column, map_ in enumerate(maps):
            part = pixels[2 * row : 2 * row + 2, 4 * column : 4 * column + 4]
            white = (255, 128, 255)[column]
            assert np.array_equal(part, np.where(map_ > 0, white, 0))


def test_colours_run_from_least_to_most_attention() -> None:
    table = np.array(colour_table()).reshape(256, 3)
    light = table @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -1).all()
    assert light[-1] - light[0] > 200
    pixels = pixels_of(coloured_map(np.array([[0.0, 1.0], [2.0, 9.0]]), limit=2.0))
    assert np.array_equal(pixels[1, 0], table[255])
    assert np.array_equal(pixels[1, 1], table[255])
    assert np.array_equal(pixels[0, 0], table[0])
    assert np.array_equal(pixels[0, 1], table[128])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_large_maps_are_averaged_and_of_one_scale(scale: float) -> None:
    maps = np.random.default_rng(0).random((2, 64, 96)) * scale
    small = downsample(maps)
    assert small.shape == (2, 21, 32)
    assert np.square(small).mean(axis=(1, 2)) == pytest.approx([1, 1])
    oracle = maps[:, :, :64].reshape(2, 32, 2, 32, 2).mean(axis=(2, 4)) / scale
    oracle /= np.sqrt(np.square(oracle).mean(axis=(1, 2), keepdims=True))
    assert downsample(maps[:, :, :64]) == pytest.approx(oracle, rel=1e-5)
    assert not downsample(np.zeros((1, 4, 4))).any()


def test_cosines_are_the_measures() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.random((3, 8, 4)), generator.random((3, 4, 8))
    oracle = at.measures.cosine(torch.from_numpy(student), torch.from_numpy(teacher))
    assert cosine_similarity(student, teacher) == pytest.approx(oracle.numpy(), rel=1e-5)


def test_the_viewer_shows_the_student_approach_the_teacher(taught: Path) -> None:
    view = viewer_data(group_runs(read_runs([taught])), ["cat", "dog", "owl"])
    assert view is not None
    (run,) = view["runs"]
    assert run["epochs"] == list(EPOCHS)
    for point, (height, width) in zip(run["points"], ((8, 8), (4, 4)), strict=True):
        sprite = pixels_of(point["sprite"]["data"])
        assert sprite.shape == (3 * height, PROBES * width)
        teacher = pixels_of(point["teacher_sprite"]["data"])
        assert np.array_equal(sprite[2 * height :], teacher)
        assert not np.array_equal(sprite[:height], teacher)
        assert point["agreement"] == [[0.0] * PROBES, [0.0] * PROBES, [1.0] * PROBES]
    assert [answer[0] for answer in run["answers"][-1]] == [0, 1, 2, 0, 1, 2]
    assert (
        viewer_data(group_runs(read_runs([made_run(taught.parent / "none", probes=False)])), [])
        is None
    )


def test_the_student_alone_is_shown_beside_the_teacher_of_the_others(
    alone: Path, taught: Path
) -> None:
    view = viewer_data(group_runs(read_runs([alone, taught])), ["cat", "dog", "owl"])
    assert view is not None
    assert [run["label"] for run in view["runs"]] == ["wrn-10-1 with AT", "wrn-10-1 alone"]
    places = [run["points"][1] for run in view["runs"]]
    assert places[0]["teacher_sprite"] == places[1]["teacher_sprite"]
    assert [place["teacher"] for place in places] == ["top", "top"]
    (by_itself,) = viewer_data(group_runs(read_runs([alone])), ["cat", "dog", "owl"])["runs"]  # type: ignore[index]
    assert by_itself["points"][1]["teacher_sprite"] is None
    assert by_itself["points"][1]["agreement"] is None


def test_confusion_of_few_and_of_many_classes(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / f"seed-{seed}", seed=seed, wrong=(seed,)) for seed in range(2)]
    (group,) = group_runs(read_runs(runs))
    matrix = confusion(group, ["cat", "dog", "owl"])
    counts = [[cell["count"] for cell in row["cells"]] for row in matrix["rows"]]
    assert counts == [[67, 1, 0], [0, 65, 1], [0, 0, 66]]  # of both runs
    assert matrix["pairs"] == [
        {"true": "cat", "predicted": "dog", "count": 1, "of": 68},
        {"true": "dog", "predicted": "owl", "count": 1, "of": 66},
    ]
    classes = tuple(str(index) for index in range(30))
    large = made_run(tmp_path / "large", classes=classes, wrong=(7, 37, 67))
    (group,) = group_runs(read_runs([large]))
    matrix = confusion(group, classes)
    assert matrix["rows"] == []
    assert matrix["pairs"] == [{"true": "7", "predicted": "8", "count": 3, "of": 4}]


def test_plots_have_no_styles_and_no_scripts() -> None:
    svg = draw_curves({"$a_1$ <b>": [Line("x", 7, [1, 2], [3, 4])]}, x="epoch", y="loss")
    tags = _Text(svg).tags
    assert not any("style" in attributes for _, attributes in tags)
    assert not {"style", "script"} & {tag for tag, _ in tags}
    assert "$a_1$ <b>" in _Text(svg).text
    assert any(attributes.get("class") == "series series-1" for _, attributes in tags)


def test_the_page_needs_nothing_but_itself(alone: Path, taught: Path) -> None:
    page = page_of(alone, taught)
    parsed = _Text(page)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [
        str(attributes["content"])
        for tag, attributes in parsed.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    nonce = re.findall(r"script-src 'nonce-([^']+)'", policy)[0]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    scripts = [attributes for tag, attributes in parsed.tags if tag in ("script", "style")]
    assert all(attributes["nonce"] == nonce for attributes in scripts)
    assert nonce not in page_of(alone, taught)
    for figure in ("12.0 %", "6.0 %", "77,850", "25 M", "0.32 MB", "48 s", "1,000", "2.0 %"):
        assert figure in parsed.text, figure
    assert "attention-transfer distill --student wrn-10-1 --teacher runs/teacher" in parsed.text


def test_names_of_all_kinds_stay_text(tmp_path: Path) -> None:
    classes = (HOSTILE, "\u05d0\u05d1\u05d2 \u202e evil", "zero\u200bwidth\x1b[31m")
    run = made_run(tmp_path / "a<b>&c", teacher=HOSTILE, classes=classes, data=HOSTILE)
    page = page_of(run)
    assert HOSTILE not in page
    parsed = _Text(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2  # the data's and our own
    assert not any(attributes.get("src") == "x" for _, attributes in parsed.tags)
    assert r"zero\u200bwidth\x1b[31m" in parsed.text
    assert "\u05d0\u05d1\u05d2 \\u202e evil" in parsed.text
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(data[0])["classes"][0] == HOSTILE


def test_a_thousand_classes_and_three_runs_fit(tmp_path: Path) -> None:
    classes = tuple(f"class number {index}" for index in range(1000))
    runs = [
        made_run(
            tmp_path / f"run-{number}",
            teacher="t",
            classes=classes,
            images=2000,
            size=128,
            lr=0.1 + number,
        )
        for number in range(3)
    ]
    page = at.write_report(runs)
    assert page.stat().st_size < 5_000_000
    assert "1000 classes are too many for a matrix" in page.read_text(encoding="utf-8")


def test_runs_of_different_data_are_kept_apart(alone: Path, tmp_path: Path) -> None:
    text = _Text(page_of(alone, made_run(tmp_path / "digits", data="digits"))).text
    assert "evaluated on 2 different sets of test images, so their errors cannot be" in text
    assert text.count("training time") == 2


def test_a_run_without_maps_is_a_warning(taught: Path, tmp_path: Path) -> None:
    bare = made_run(tmp_path / "bare", probes=False)
    text = _Text(page_of(taught, bare)).text
    assert "bare saved no attention maps" in text
    assert "Attention maps during training" in text
    assert "Attention maps during training" not in _Text(page_of(bare)).text


def test_warnings_of_a_run(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    record["data"]["notices"] = ["left out, broken: a.png"]
    record["best_on_validation"] = {"epoch": 2, "validation_error": -5.0}
    record["seconds"] = 40.0
    (folder / "record.json").write_text(json.dumps(record))
    figures = (folder / "metrics.jsonl").read_text()
    waiting = figures.replace('waiting_for_data": 0.1', 'waiting_for_data": 2.5')
    (folder / "metrics.jsonl").write_text(waiting)
    warnings = list(run_warnings(group_runs(read_runs([folder]))))
    assert warnings[0] == "left out, broken: a.png"
    assert "higher validation error (1.0 %) than those after epoch 2" in warnings[1]
    assert "waited for data 25 % of its time" in warnings[2]
    assert len(warnings) == 3


def test_a_demo_stands_for_its_runs(tmp_path: Path) -> None:
    for name in ("alone", "at"):
        made_run(tmp_path / "demo" / name, teacher="t" if name == "at" else None)
    (tmp_path / "demo" / "demo.json").write_text("{}")
    assert [run.name for run in read_runs([tmp_path / "demo"])] == ["alone", "at"]
    assert at.write_report([tmp_path / "demo"]) == tmp_path / "demo" / "report.html"


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("record.json", "{", "record.json is damaged"),
        ("record.json", "[]", "record.json is damaged (Input should be an object)"),
        ("record.json", "{}", "record.json is damaged (command: Field required; config: Field"),
        ("metrics.jsonl", '{"epoch": 1}', "terms: Field required and 9 more"),
        ("predictions.npz", "PK", "remove {folder}/predictions.npz to do without it"),
        ("metrics.jsonl", "no", "metrics.jsonl line 1 is damaged"),
        ("attention/epoch-0002.npz", "PK", "epoch-0002.npz is damaged"),
        ("model.json", "3", "model.json is damaged"),
    ],
)
def test_damaged_files_are_named(
    file: str, content: str, match: str, taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (taught / file).write_text(content)
    assert main(["report", str(taught)]) == 2
    assert match.format(folder=taught) in capsys.readouterr().err
    assert not (taught / "report.html").exists()


def test_a_pickle_in_an_array_file_is_not_run(taught: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("sentinel"),))

    np.savez(taught / "predictions.npz", labels=np.array([Payload()], dtype=object))
    assert zipfile.is_zipfile(taught / "predictions.npz")
    with pytest.raises(at.InputError, match=r"predictions\.npz is damaged"):
        at.write_report([taught])
    assert not Path("sentinel").exists()


def test_folders_without_a_finished_run_are_refused(
    tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (alone / "record.json").unlink()
    for folder, said in (
        ("missing", "there is no folder"),
        ("empty", "holds no run (no config.yaml)"),
        ("alone", "is not finished (no record.json); resume it: attention-transfer resume"),
    ):
        assert main(["report", str(tmp_path / folder)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(at.InputError, match="got no runs"):
        at.write_report([])


def test_a_page_that_cannot_be_written_is_an_error(
    taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(taught), "--out", "/dev/null/page.html"]) == 2
    assert "cannot write /dev/null/page.html" in capsys.readouterr().err
    assert main(["report", str(taught), "--out", str(taught)]) == 2
    assert "a folder; give a file" in capsys.readouterr().err
    assert not list(taught.parent.glob(".*partial"))


def test_the_command_prints_one_document(
    alone: Path, taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(alone), str(taught), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    page = Path(document["report"])
    assert page == alone.parent / "report.html"
    assert document["bytes"] == page.stat().st_size
    assert main(["report", str(alone), "--out", "here.html"]) == 0
    assert capsys.readouterr().out == "report: here.html\n"
    assert Path("here.html").is_file()


def test_writing_a_report_imports_no_torch(taught: Path) -> None:
    code = (
        "import sys; from attention_transfer.cli import main; "
        f"code = main(['report', {str(taught)!r}]); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
