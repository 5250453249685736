"""The documents' figures are those of the files with the results."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import figures
from attention_transfer.experiments.study.files import find_study
from attention_transfer.experiments.study.planning import make_plan
from figures.__main__ import documents, filled, main
from figures.lines import lines
from figures.settings import SETTINGS
from figures.sources import ROOT, FigureError, Sources
from figures.tables import TABLES
from figures.text import Figure, Table, fill, unmarked
from figures.values import FIGURES, difference, extent, span

NAMED: dict[str, Figure] = {
    "speed": Figure(lambda _: "2.5"),
    "range": span("runs", "pairs/*/speed", ".1f"),
}
TABLE: dict[str, Table] = {"arms": lambda _, arms: lines(["", "ms"], [[arms, "51"]])}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    pairs = {"a": {"speed": 1.61}, "b": {"speed": 1.84}}
    (folder / "runs.json").write_text(json.dumps({"pairs": pairs, "list": [{"x": 1}]}))
    return Sources(tmp_path)


def refill(text: str, sources: Sources) -> str:
    return fill(text, sources, NAMED, TABLE)


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_every_figure_of_a_document_is_that_of_its_file(document: Path) -> None:
    assert filled(document) == document.read_text(encoding="utf-8"), "run make figures"


def test_every_figure_and_table_is_used_and_every_exempt_document_exists() -> None:
    text = "".join(document.read_text(encoding="utf-8") for document in documents())
    assert [name for name in FIGURES if f"<!-- figure: {name} -->" not in text] == []
    unused = [name for name in TABLES if f"<!-- table: {name}" not in text]
    assert unused in ([], ["study"]), "no table has this function"
    assert set(SETTINGS) <= {path.relative_to(ROOT).as_posix() for path in documents()}


def test_figures_are_those_read_by_hand() -> None:
    """Read from the files by eye; a new measurement changes them."""
    fused = json.loads((ROOT / "benchmarks/results/fused.json").read_text())
    ratio = fused["cases"]["128x64x32x32, bf16, channels_last"]["ratios"]["fused_over_autograd"]
    assert f"| {1 / ratio['median']:.1f} |" in (ROOT / "docs/results.md").read_text()
    runs = json.loads((ROOT / "benchmarks/results/run_bf16.json").read_text())["pairs"].values()
    reached = sorted(pair["ratios"]["cached over student"]["median"] for pair in runs)
    expected = f"{reached[0]:.2f} to {reached[1]:.2f}<!-- figure: run-cached-bf16 -->"
    assert expected in (ROOT / "README.md").read_text()


def test_the_study_of_differences_compares_each_arm_with_the_librarys_choice() -> None:
    """docs/reproducing.md sends readers to it."""
    study = find_study(str(ROOT / "examples/differences.yaml"))
    assert set(study.compare) | {one for many in study.compare.values() for one in many} == set(
        study.arms
    )
    # One teacher, and each arm with five seeds.
    planned = make_plan(study)
    assert (len(planned.teachers), len(planned.runs)) == (1, 5 * len(study.arms))


@pytest.mark.parametrize("pair", ["wrn", "nin"])
def test_the_findings_on_gradient_terms_are_those_of_the_intervals(pair: str) -> None:
    def established(arm: str) -> bool:
        return difference(Sources(), f"gradient_arms_{pair}", arm, "alone").established

    assert not any(map(established, ("min-l2", "gradient attention", "flip symmetry")))
    assert established("activation attention")
    assert established("distillation") == (pair == "nin")


def test_the_finding_on_cached_targets_is_that_of_the_intervals() -> None:
    """Said in docs/results.md and docs/reproducing.md."""
    for arm in ("at", "at+kd"):
        found = difference(Sources(), "accuracy_cached", f"{arm} cached", arm)
        assert found.sentence.startswith("no difference seen")


def test_a_changed_figure_is_replaced_and_nothing_else(sources: Sources) -> None:
    before = "In 3, 4.1<!-- figure: speed --> and 9 to 12<!-- figure: range --> of 12.0 there"
    after = "In 3, 2.5<!-- figure: speed --> and 1.6 to 1.8<!-- figure: range --> of 12.0 there"
    assert refill(before, sources) == after
    assert refill(after, sources) == after


def test_a_table_is_written_again_with_what_its_marker_says(sources: Sources) -> None:
    written = (
        "text\n\n<!-- table: arms of two -->\n\n| | ms |\n|---|---|\n| of two | 51 |\n\nmore\n"
    )
    assert refill("text\n\n<!-- table: arms of two -->\n\nmore\n", sources) == written
    assert refill(written.replace("51 |", "52 |\n| x | 1 |"), sources) == written
    assert refill(written, sources) == written


def test_markers_in_code_are_left_alone(sources: Sources) -> None:
    text = (
        "`1<!-- figure: speed -->`\n\n```\n1<!-- figure: other -->\n```\n\n    <!-- table: x -->\n"
    )
    assert refill(text, sources) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n1<!-- figure: sped -->", "line 2: unknown figure 'sped', expected one of range, speed"),
        ("<!-- table: arm -->\n", "line 1: unknown table 'arm', expected one of arms"),
        ("1<!-- figur: speed -->", "unknown marker '<!-- figur: speed -->'"),
        (
            "one<!-- figure: speed -->",
            "before <!-- figure: speed --> there is no number such as 2.5",
        ),
        ("1\n<!-- figure: speed -->", "there is no number"),
        ("see <!-- table: arms -->\n", "must be a line of its own"),
        ("<!-- table: arms --> 1\n", "must be a line of its own"),
    ],
)
def test_a_wrong_marker_is_one_clear_error(text: str, message: str, sources: Sources) -> None:
    with pytest.raises(FigureError) as caught:
        refill(text, sources)
    assert message in str(caught.value)


def test_a_missing_file_or_key_is_one_clear_error(sources: Sources) -> None:
    with pytest.raises(FigureError, match=r"lost\.json does not exist: run what measures it"):
        sources.measured("lost").one("pairs")
    runs = sources.measured("runs")
    with pytest.raises(FigureError, match=r"no 'pairs/c'; it has 'a', 'b' there"):
        runs.one("pairs/c/speed")
    with pytest.raises(FigureError, match=r"matches 2 values, expected one"):
        runs.one("pairs/*/speed")
    assert (runs.one("pairs/b/speed"), runs.one("list/0/x")) == (1.84, 1)
    (sources.root / "benchmarks/results/runs.json").write_text("{")
    with pytest.raises(FigureError, match=r"runs\.json cannot be read: "):
        Sources(sources.root).measured("runs").one("pairs")


def test_a_range_whose_ends_read_the_same_is_one_number() -> None:
    assert extent([1.84, 1.61, 1.7], ".1f") == "1.6 to 1.8"
    assert extent([1.61, 1.64], ".1f") == "1.6"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("takes 2.7 times", ["line 1: 2.7 times"]),
        ("one\ntakes 12 ms", ["line 2: 12 ms"]),
        ("1.6 to 1.8 of it", ["line 1: 1.6 to 1.8"]),
        ("| a | 1.5 |\n|---|---|\n", ["line 1: 1.5"]),
        ("takes 2.7<!-- figure: x --> times, 12<!-- no file --> ms, 5 epochs of 2026", []),
        ("`2.7` and WRN-16-2 and [2](v1.5) and torch 1.1.5\n\n    1.5\n", []),
        ("<!-- table: x -->\n\n| a | 1.5 |\n", []),
        ("a peak of 0.4", []),
        ("| rate | 0.4 |\n|---|---|\n| a | 1.5 |\n", []),
    ],
)
def test_a_measurement_without_a_marker_is_found(text: str, found: list[str]) -> None:
    settings = [phrase for phrase in ("peak of 0.4", "| rate") if phrase in text]
    assert unmarked(text, settings) == found


def test_a_listed_phrase_that_a_document_lost_is_an_error() -> None:
    with pytest.raises(FigureError, match=r"settings\.py lists 'peak of 0\.4'"):
        unmarked("peak of 0.5", ["peak of 0.4"])


def test_the_papers_tables_have_the_marks_of_their_studies(tmp_path: Path) -> None:
    studies = tmp_path / "src/attention_transfer/experiments/studies"
    studies.mkdir(parents=True)
    paper = {"paper": {"a pair": {"alone": "9.38 M", "AT": "8.9/2.1 C"}, "other": {"AT": "7 M"}}}
    (studies / "table-9.yaml").write_text(yaml.safe_dump(paper, sort_keys=False))
    assert TABLES["paper"](Sources(tmp_path), "table-9") == [
        "| | alone | AT |",
        "|---|---|---|",
        "| a pair | 9.38 (M) | 8.9/2.1 (C) |",
        "| other | | 7 (M) |",
    ]


def test_a_study_gives_a_table(tmp_path: Path) -> None:
    def arm(name: str, statistics: dict[str, Any] | None) -> dict[str, Any]:
        errors = {"validation_errors": {}} if name == "KD" else {"test_errors": {}}
        return {"arm": name, "statistics": statistics, "runs_planned": 2, **errors}

    row = {
        "pair": "small from large",
        "variant": "",
        "data": "digits",
        "teacher_test_error": 7.6,
        "arms": [
            arm("alone", {"n": 2, "mean": 12.0, "median": 12.5, "std": 0.5}),
            arm("AT", {"n": 1, "mean": 8.0, "median": 8.0, "std": None}),
            arm("KD", None),
        ],
        "comparisons": [{"arm": "AT", "baseline": "alone", "sentence": "a gain"}],
    }
    folder = tmp_path / "docs/results/mine"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"rows": [row]}))
    place = "small from large, digits"
    head, _, *table = TABLES["study"](Sources(tmp_path), "mine")
    assert "| test or validation error % |" in head
    assert table == [
        f"| {place} | alone | 2 | 12.00 ± 0.50 | 12.50 | |",
        f"| {place} | AT | 1 | 8.00 | 8.00 | vs alone: a gain |",
        f"| {place} | KD | 0 of 2 | | | |",
        f"| {place} | teacher | | 7.60 | | |",
    ]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the documents and of the files they take figures from."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    for folder in ("benchmarks/results", "src/attention_transfer/experiments/studies"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_a_new_measurement_changes_the_documents(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, readme = copied / "benchmarks/results/step_bf16.json", copied / "README.md"
    measured = json.loads(file.read_text())
    measured["pairs"]["wrn-16-1 from wrn-16-2"]["milliseconds"]["live"]["median"] = 99.4
    file.write_text(json.dumps(measured))
    before = readme.read_text()
    assert main(["--check"], copied) == 1
    assert "+| WRN-16-1 from WRN-16-2 | 51 | 34 | 99 | 54 |" in capsys.readouterr().out
    assert readme.read_text() == before
    assert main([], copied) == 0
    assert readme.read_text() == before.replace("| 51 | 34 | 86 |", "| 51 | 34 | 99 |")
    assert main(["--check"], copied) == 0


def test_an_error_leaves_all_documents_as_they_were(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = copied / "README.md"
    readme.write_text(readme.read_text().replace("| 51 | 34 |", "| 52 | 34 |"))
    (copied / "benchmarks/results/memory.json").unlink()
    before = readme.read_text()
    assert main([], copied) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("figures: docs/results.md: line ")
    assert "memory.json does not exist" in line
    assert readme.read_text() == before


def test_the_command_finds_nothing_to_change() -> None:
    folder = Path(figures.__file__).parents[1]
    command = [sys.executable, "-m", "figures", "--check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
