"""Studies: their files, plans, statistics and results, without training anything."""

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attention_transfer import cli
from attention_transfer.cli import study as study_command
from attention_transfer.config import RunConfig
from attention_transfer.config.studies import LONGEST_SLUG, StudyConfig, slug
from attention_transfer.config.yaml_files import read_nested_file, write_config_file
from attention_transfer.errors import InputError, UntrustedError
from attention_transfer.experiments.study.caches import FROM_FIELDS, FROM_LOGITS
from attention_transfer.experiments.study.estimate import KindCost, estimate
from attention_transfer.experiments.study.files import (
    changed_study,
    find_study,
    named_studies,
    study_of,
)
from attention_transfer.experiments.study.plan import Plan, PlannedRun
from attention_transfer.experiments.study.planning import make_plan
from attention_transfer.experiments.study.preflight import check_document, needs_images
from attention_transfer.experiments.study.running import StudyFolder
from attention_transfer.experiments.study.statistics import (
    paired_difference,
    summarize,
    t_quantile,
)
from attention_transfer.experiments.study.workers import log_file, run_arguments
from attention_transfer.runs import Run
from attention_transfer.transfer import TERMS, PairTerm
from attention_transfer.trust import trusting
from made_runs import made_run

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "settings": {"epochs": "2"},
    "seeds": "0-1",
    "teachers": {"big": {"student": "wrn-10-2"}},
    "pairs": {"small from big": {"student": "wrn-10-1", "teacher": "big"}},
    "arms": {
        "alone": {"teacher": "none"},
        "AT": {},
        "AT+KD": {"kd_alpha": "0.9", "beta_schedule": "linear"},
    },
}


def study(**changes: Any) -> StudyConfig:
    return study_of({**SMALL, **changes}, "small.yaml")


def plan(**changes: Any) -> Plan:
    return make_plan(study(**changes))


errors = st.lists(st.floats(0, 100), min_size=2, max_size=12)


@given(errors)
def test_summaries_agree_with_scipy(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.median == pytest.approx(np.median(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = scale * stats.t.ppf(0.975, len(values) - 1)
    assert summary.high is not None
    assert summary.high - summary.mean == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_quantiles_of_t_agree_with_scipy(confidence: float) -> None:
    for degrees in (1, 2, 3, 4, 5, 10, 29, 30, 31, 200):
        expected = stats.t.ppf((1 + confidence) / 2, degrees)
        assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=10))
def test_paired_differences_agree_with_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    first, second = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    difference = paired_difference(first, second)
    assert difference is not None
    differences = [a - b for a, b in pairs]
    if np.std(differences) < 1e-6:
        return
    test = stats.ttest_rel(list(first.values()), list(second.values()))
    if abs(test.pvalue - 0.05) > 1e-9:
        assert difference.established == (test.pvalue < 0.05)
    interval = test.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(interval), abs=1e-8)


def test_differences_in_words() -> None:
    def words(arm: list[float], baseline: list[float]) -> str:
        difference = paired_difference(dict(enumerate(arm)), dict(enumerate(baseline)))
        assert difference is not None
        return difference.sentence

    assert words([8.0, 8.2, 8.1], [12.0, 12.1, 12.2]).startswith("gain of 4.00 points established")
    assert words([12.0, 12.1, 12.2], [8.0, 8.2, 8.1]).startswith("loss of 4.00 points established")
    assert words([8, 12, 9], [9, 10, 10]).startswith("no difference seen, 95 % interval -4.30 to")
    assert words([8.0], [12.0]) == "-4.00 points for one seed, which has no interval"
    assert paired_difference({0: 1.0}, {1: 2.0}) is None


def test_seeds_that_only_one_arm_has_are_left_out_of_the_difference() -> None:
    difference = paired_difference({0: 1.0, 1: 2.0, 2: 50.0}, {1: 3.0, 0: 2.0, 7: 9.0})
    assert difference is not None
    assert (difference.n, difference.mean) == (2, -1.0)


def test_a_plan_has_each_teacher_once_and_shares_its_cache() -> None:
    made = plan()
    assert [run.folder for run in made.teachers] == ["teachers/cluttered-digits/big"]
    assert len(made.runs) == 3 * 2
    taught = [run for run in made.runs if run.needs]
    assert {run.needs for run in taught} == {("teachers/cluttered-digits/big",)}
    assert len({run.cache for run in taught}) == 1
    assert {run.cache for run in made.runs if not run.needs} == {None}
    config = taught[0].config(Path("/s"))
    assert config.teacher == "/s/teachers/cluttered-digits/big"
    assert config.cache == Path("/s") / str(taught[0].cache)


def test_equal_runs_of_two_pairs_are_one() -> None:
    pairs = {
        "small from big": {"student": "wrn-10-1", "teacher": "big"},
        "small from deep": {"student": "wrn-10-1", "teacher": "deep"},
    }
    teachers = {"big": {"student": "wrn-10-2"}, "deep": {"student": "wrn-16-1"}}
    made = plan(pairs=pairs, teachers=teachers)
    assert len(made.runs) == 2 + 2 * 2 * 2  # alone once, two arms for each pair; two seeds
    alone = {cell.pair: seeds for cell, seeds in made.cells.items() if cell.arm == "alone"}
    assert alone["small from big"] == alone["small from deep"]


def test_another_mapping_function_has_a_cache_of_its_own_and_own_activations_none() -> None:
    arms = {
        "alone": {"teacher": "none"},
        "AT": {},
        "F_max": {"map": "max"},
        "F-ActT": {"attention": "none", "full_activation_beta": "1"},
    }
    made = plan(arms=arms)
    caches = {cell.arm: cell for cell in made.cells}
    runs = {run.folder: run for run in made.runs}
    of_arm = {arm: runs[made.cells[cell][0]].cache for arm, cell in caches.items()}
    assert of_arm["F-ActT"] is None
    assert len({of_arm["AT"], of_arm["F_max"], None}) == 3


def test_students_with_sizes_of_their_own_share_no_cache() -> None:
    def caches(**settings: Any) -> list[str | None]:
        students = ("wrn-10-1", "wrn-16-1", "timm:resnet18", "timm:vit_tiny_patch16_224")
        pairs = {one: {"student": one, "teacher": "big"} for one in students}
        made = plan(pairs=pairs, arms={"AT": {}}, seeds="1", settings=settings)
        return [run.cache for run in made.runs]

    small, other, large, transformer = caches()
    assert small == other
    assert len({small, large, transformer}) == 3
    assert len(set(caches(image_size="64"))) == 1


def test_untrained_networks_are_measured_in_place_of_those_to_be_trained(tmp_path: Path) -> None:
    measured: list[RunConfig] = []

    def measure(config: RunConfig) -> KindCost:
        measured.append(config)
        return KindCost(1.0, 0.0, 0.0, 1)

    made = make_plan(changed_study(find_study("table-4"), ["folder:birds"], {"seeds": "1"}))
    cost = estimate(made, set(), tmp_path, measure)
    assert (cost.runs, cost.seconds) == (4, 4 * 60.0)
    found = {(config.student, config.teacher) for config in measured}
    small, large = "timm:resnet18@random", "timm:resnet34@random"
    assert found == {(large, None), (small, None), (small, large)}


def test_distillation_alone_shares_no_cache_with_attention_transfer() -> None:
    arms = {
        "KD": {"attention": "none", "kd_alpha": "0.9"},
        "KD 2017": {"preset": "authors-kd-2017"},
        "AT": {},
        "AT+KD": {"kd_alpha": "0.9"},
        "pooled features": {"preset": "repdistiller"},
    }
    made = plan(arms=arms)
    runs = {run.folder: run for run in made.runs}
    caches = {cell.arm: runs[seeds[0]].cache for cell, seeds in made.cells.items()}
    assert caches["KD"] == caches["KD 2017"] != caches["AT"] == caches["AT+KD"]
    assert caches["pooled features"] is None


def test_lengths_in_steps_become_the_nearest_epochs() -> None:
    made = make_plan(
        study(variants={"short": {"steps": "70"}, "long": {"steps": "850"}}),
        {"cluttered-digits": 3600},
    )
    epochs = {run.folder.split("/")[3]: run.settings["epochs"] for run in made.runs}
    assert epochs == {"short": 1, "long": 15}  # 57 steps an epoch
    assert made.steps == {
        ("cluttered-digits", "small from big", "short"): (57,),
        ("cluttered-digits", "small from big", "long"): (855,),
    }
    with pytest.raises(InputError, match="steps need the number of images"):
        plan(variants={"short": {"steps": "70"}, "long": {"steps": "850"}})


def test_the_table_names_the_steps_that_were_run(tmp_path: Path) -> None:
    arms = {"alone": {"teacher": "none"}, "large batches": {"batch_size": "128"}}
    value = study(variants={"70 steps": {"steps": "70"}}, arms=arms)
    StudyFolder(value, tmp_path, {"cluttered-digits": 3600}).write()
    title = "## small from big, 70 steps, cluttered-digits (57 or 58 steps run): test error"
    assert title in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "study.json").read_text())["rows"][0]["steps"] == [57, 58]


def test_a_length_in_steps_may_be_chosen() -> None:
    select = {"setting": "steps", "values": ["70", "850"], "by": "alone"}
    made = make_plan(study(select=select), {"cluttered-digits": 3600})
    assert [run.settings["epochs"] for run in made.selection_runs] == [1, 15]
    errors = {run.folder: error for run, error in zip(made.selection_runs, (9, 8), strict=True)}
    chosen = make_plan(study(select=select), {"cluttered-digits": 3600}, errors)
    assert {run.settings["epochs"] for run in chosen.runs} == {15}
    assert needs_images(study(select=select))


def test_equal_settings_in_other_words_are_one_run() -> None:
    arms = {"a": {"lr": "0.1"}, "b": {"lr": "0.10"}, "c": {"lr": "1e-1", "map": "sum"}}
    assert len(plan(arms=arms).runs) == 2


def test_built_in_terms_read_caches() -> None:
    arms = {
        "KD": {"attention": "none", "kd_alpha": "0.9"},
        "DIST": {"attention": "none", "terms": "dist"},
        "DKD": {"attention": "none", "terms": "dkd(beta=4)"},
        "AT": {},
        "AT and DIST": {"terms": ["dist"]},
        "CAT": {"attention": "none", "terms": "class_attention"},
        "own": {"attention": "none", "terms": "own:Term"},
        "full": {"attention": "none", "terms": ["dist", "full_activation"]},
    }
    made = plan(arms=arms)
    runs = {run.folder: run for run in made.runs}
    caches = {cell.arm: runs[seeds[0]].cache for cell, seeds in made.cells.items()}
    assert caches["KD"] == caches["DIST"] == caches["DKD"]
    assert caches["AT"] == caches["AT and DIST"]
    assert len({caches["KD"], caches["AT"], caches["CAT"], None}) == 4
    assert caches["own"] is caches["full"] is None


def test_terms_that_read_caches_read_what_is_in_them() -> None:
    for name in FROM_LOGITS:
        assert TERMS[name].needs_teacher_logits
        assert not issubclass(TERMS[name], PairTerm)
        assert not TERMS[name].needs_teacher_gradient
    for name in FROM_FIELDS:
        assert issubclass(TERMS[name], PairTerm)
    # What reads nothing of a teacher, raw features or the teacher's gradient.
    others = set(TERMS) - {*FROM_LOGITS, *FROM_FIELDS}
    assert others == {
        *("cross_entropy", "binary_cross_entropy", "flip_symmetry", "input_gradient_norm"),
        *("full_activation", "gradient_attention"),
    }


def test_the_papers_figures_stand_beside_its_data_alone(tmp_path: Path) -> None:
    paper = {"small from big": {"AT": "7.93 C"}, "cluttered-digits": {"alone": "8 M"}}
    data = ["cluttered-digits", "cifar10:somewhere"]
    value = study(paper=paper, data=data, paper_data="cifar10")
    StudyFolder(value, tmp_path, {}).write()
    figures = {
        (row["data"], arm["arm"]): arm["paper"] and arm["paper"]["error"]
        for row in json.loads((tmp_path / "study.json").read_text())["rows"]
        for arm in row["arms"]
    }
    assert figures["cifar10:somewhere", "AT"] == 7.93
    assert figures["cluttered-digits", "AT"] is None
    assert figures["cluttered-digits", "alone"] == 8
    for name in ("table-1", "table-2", "table-3", "table-5"):
        assert find_study(name).paper_data is not None


def test_recipes_set_the_length() -> None:
    def epochs(data: str, **changes: Any) -> set[Any]:
        made = plan(settings={}, data=[data], **changes)
        return {run.config(Path("s")).epochs for run in made.all_runs}

    assert epochs("cluttered-digits") == {15}
    assert epochs("cifar10") == {200}
    assert epochs("cluttered-digits", recipe="paper") == {200}
    assert epochs("cifar10", recipe="short") == {20}
    assert epochs("cifar10", recipe="minutes") == {12}
    assert epochs("imagenet:somewhere") == {100}


def test_a_selection_is_made_on_validation_and_then_used_by_every_arm() -> None:
    select = {"setting": "lr", "values": ["0.1", "0.2"], "by": "alone"}
    made = plan(select=select)
    assert len(made.selection_runs) == 2
    assert all(run.config(Path("s")).test is False for run in made.selection_runs)
    assert {run.waits_for for run in made.runs} == {"lr"}
    folders = [run.folder for run in made.selection_runs]
    assert folders[0] == ("selection/cluttered-digits/small-from-big/alone/lr-0.1/seed-1000")
    chosen = make_plan(study(select=select), {}, dict(zip(folders, (9.0, 8.0), strict=True)))
    assert {run.settings["lr"] for run in chosen.runs} == {0.2}
    assert {run.waits_for for run in chosen.runs} == {""}
    assert chosen.selections[0].chosen == "0.2"


def test_every_named_study_can_be_planned() -> None:
    images = {"plain-digits": 500, "cluttered-digits": 3600, "photographs": 1440}
    names = named_studies()
    assert list(names) == [
        *("do-no-harm", "length", "methods", "table-1", "table-2", "table-3", "table-4", "table-5")
    ]
    for name, path in names.items():
        made = make_plan(study_of(read_nested_file(path), name), images)
        assert made.study.name == name
        assert made.runs
        assert all(run.config(Path("s")) for run in made.all_runs)


def test_table_1_has_the_papers_pairs_and_settings() -> None:
    made = make_plan(find_study("table-1"))
    assert len(made.teachers) == 4
    assert len(made.runs) == 4 * 5 * 5 - 5  # WRN-16-1 alone belongs to two pairs
    config = made.runs[-1].config(Path("s"))
    assert (config.epochs, config.batch_size, config.lr, config.schedule) == (200, 128, 0.1, "step")
    assert not config.nesterov


def test_other_data_take_the_place_of_a_studys_own() -> None:
    changed = changed_study(find_study("table-4"), ["folder:mine"], {"seeds": "3"})
    assert list(changed.data) == ["folder:mine"]
    assert changed.seeds == (0, 1, 2)
    assert changed.paper == {}
    assert list(make_plan(changed_study(find_study("table-3"), ["cifar10"], {})).study.pairs) == [
        "nin-thin-nobn from nin-wide-nobn"  # the other pair is for cluttered-digits alone
    ]
    three = changed_study(find_study("table-3"), ["cluttered-digits"], {})
    assert three.data["cluttered-digits"]["batch_size"] == 32


@pytest.mark.parametrize("name", ["methods", "length"])
def test_teachers_are_trained_on_the_data_given(name: str) -> None:
    packaged = make_plan(find_study(name))
    assert packaged.teachers == ()
    changed = make_plan(changed_study(find_study(name), ["cifar10"], {}))
    (teacher,) = changed.teachers
    config = teacher.config(Path("s"))
    assert (config.data, config.epochs, config.lr) == ("cifar10", 200, 0.1)


def test_the_packaged_teacher_teaches_no_other_data() -> None:
    pairs = {"p": {"student": "wrn-10-1", "teacher": "packaged"}}
    assert plan(pairs=pairs, data={"digits": {"data": "cluttered-digits"}}).runs
    with pytest.raises(InputError, match="was trained on cluttered-digits and not on cifar10"):
        plan(pairs=pairs, data=["cifar10"])


def test_which_run_saves_maps_depends_on_no_other_seed() -> None:
    def probes(seeds: str) -> dict[int, Any]:
        made = plan(seeds=seeds, arms={"AT": {}})
        return {run.settings["seed"]: run.settings.get("probes") for run in made.runs}

    assert probes("0-1") == {0: None, 1: 0}
    assert probes("5,0") == {5: 0, 0: None}


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("length", "minutes", "variants 5 epochs sets epochs 5"),
        ("do-no-harm", "paper", "settings sets epochs 15"),
        ("table-3", "minutes", "data cluttered-digits sets epochs 30"),
    ],
)
def test_a_recipe_without_effect_is_refused(
    name: str, recipe: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", name, "--recipe", recipe, "--commands"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--recipe {recipe} would not set all lengths" in line
    assert message in line


def test_a_recipe_with_effect_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "length", "--recipe", "short", "--commands", "--seeds", "1"]) == 0
    assert "--epochs 14" in capsys.readouterr().out
    assert cli.main(["study", "methods", "--recipe", "minutes", "--commands"]) == 0
    assert "--epochs 12" in capsys.readouterr().out


def test_data_are_downloaded_if_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "table-2", "--commands", "--download"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert lines
    assert all("--download" in line for line in lines)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_is_refused_in_one_line(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study_command, "AGENT", 1)
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["study", "methods"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (rank == "0")
    assert all("run it without torchrun, with --processes N" in line for line in lines)


WHOLE: dict[str, Any] = {
    **SMALL,
    "note": "A note",
    "recipe": "paper",
    "cache": "yes",
    "data": {"cluttered-digits": {"validation": "0.2"}, "cifar10": {}},
    "teachers": {
        "big": {
            "student": "wrn-10-2",
            "ready": {"cifar10": "wrn-10-2@random"},
            "settings": {"lr": "0.1"},
            "on": {"cluttered-digits": {"epochs": "3"}},
        }
    },
    "pairs": {
        "p": {
            "student": "wrn-10-1",
            "teacher": "big",
            "data": ["cifar10", "cluttered-digits"],
            "arms": ["alone", "AT"],
            "settings": {"batch_size": "8"},
        }
    },
    "variants": {"short": {"steps": "70"}, "long": {"epochs": "9"}},
    "arms": {"alone": {"teacher": "none"}, "AT": {"terms": ["dist"]}},
    "select": [{"setting": "lr", "values": ["0.1", "0.2"], "arms": ["AT"], "seeds": ["7", "8"]}],
    "compare": {"AT": ["alone"]},
    "paper": {"p": {"AT": "8.77 C", "teacher": "29.3/10.0 M"}},
}
"""A study with every part."""

WRONG: list[Any] = [
    *(None, "", "x", "²", "nan", "-1", "9" * 400, "none", "../..", "a" * 300, "{}"),
    *([], ["x"], [[]], [None], [{}], ["²"], ["x", "x"]),
    *({}, {"x": "y"}, {"x": None}, {"x": []}, {"x": {}}, {"x": {"x": "y"}}, {"²": "²"}),
    *({"steps": "²"}, {"steps": []}, {"epochs": {}}, {"terms": {}}, {"data": []}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


@pytest.mark.parametrize("place", list(places(WHOLE)), ids=str)
def test_a_wrong_value_anywhere_is_bad_input(place: tuple[Any, ...], tmp_path: Path) -> None:
    images = {"cluttered-digits": 100, "cifar10": 100}
    accepted = 0
    for wrong in WRONG:
        values = copy.deepcopy(WHOLE)
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        try:
            made = make_plan(study_of(values, "whole.yaml"), images)
            for run in made.all_runs:
                run_arguments(run, tmp_path)
        except InputError:
            continue
        accepted += 1
    assert accepted < len(WRONG)


def test_a_whole_study_can_be_planned() -> None:
    made = make_plan(study_of(WHOLE, "whole.yaml"), {"cluttered-digits": 100, "cifar10": 100})
    assert len(made.selection_runs) == 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"armz": {}}, ["unknown key 'armz'; did you mean arms?"]),
        (
            {
                "arms": {"alone": {"teacher": "none"}, "AT": {"betta": "3"}},
                "settings": {"epochs": "zero"},
                "compare": {"AT": "alonne"},
            },
            [
                "arms AT: unknown key 'betta'; did you mean beta?",
                "settings: epochs is 'zero'",
                "compare 'alonne' is not in the study; did you mean alone?",
            ],
        ),
        (
            {"arms": {"AT+KD": {}, "at+kd": {}}},
            ["arms: 'AT+KD' and 'at+kd' would share the folder 'at+kd'; rename one"],
        ),
        (
            {"pairs": {"p": {"student": "wrn-10-1", "teacher": "bigg"}}},
            ["pairs p: teacher 'bigg' is not in the study; did you mean big?"],
        ),
        ({"pairs": {"p": {"teacher": "big"}}}, ["pairs p: student is missing"]),
        ({"seeds": "0-"}, ["seeds is '0-', it should be a range such as 0-4"]),
        ({"seeds": "1,1"}, ["each seed once"]),
        ({"seeds": ["0", "0", "1"]}, ["each seed once"]),
        ({"seeds": ["0", "²"]}, ["each seed once"]),
        ({"name": "My Study"}, ["name is 'My Study'"]),
        ({"arms": {"AT": {"seed": "3"}}}, ["arms AT: seed is given by the study itself"]),
        ({"arms": {"AT": {"teacher": "big"}}}, ["teacher is given by the study itself"]),
        ({"variants": {"short": {"steps": "-1"}}}, ["variants short: steps is '-1'"]),
        ({"arms": "AT"}, ["arms must hold 'name: settings' lines, got 'AT'"]),
        ({"arms": {"AT": "beta"}}, ["arms AT must hold 'name: value' lines, got 'beta'"]),
        (
            {"select": {"setting": "lrr", "values": ["1", "2"]}},
            ["select: unknown key 'lrr'; did you mean lr?"],
        ),
        (
            {"select": [{"setting": "lr", "values": ["1", "2"]}] * 2},
            ["select: alone chooses two settings"],
        ),
        ({"paper": {"small from big": {"AT": "8.77"}}}, ["'8.77' is no figure"]),
        ({"paper": {"small": {"AT": "8.77 C"}}}, ["paper 'small' is not in the study"]),
        ({"data": {}}, ["data is {}, it"]),
        (
            {"select": {"setting": "lr", "values": ["0.1", "0.10"]}},
            ["select: '0.1' and '0.10' are the same lr; leave one out"],
        ),
        (
            {"select": {"setting": "lr", "values": ["1", "2"], "seeds": "1-2"}},
            ["select: seed 1 of lr is one of the table's seeds; give others"],
        ),
    ],
)
def test_everything_wrong_in_a_study_is_said_at_once(
    changes: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        study(**changes)
    assert str(raised.value).startswith("small.yaml: ")
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"pairs": {"p": {"teacher": "big"}}}, 1),
        ({"teachers": {"big": {}}}, 1),
        ({"arms": "AT"}, 1),
        ({"arms": "AT", "pairs": {"p": {}}}, 3),
    ],
)
def test_a_fault_is_said_once(changes: dict[str, Any], faults: int) -> None:
    with pytest.raises(InputError) as raised:
        study(**changes)
    assert len(str(raised.value).split("; ")) == faults


def test_a_fault_of_several_arms_is_said_once() -> None:
    settings = {"sync_batch_norm": "yes"}
    teachers = {"big": {"student": "wrn-10-2", "settings": settings}}
    with pytest.raises(InputError) as raised:
        plan(teachers=teachers, settings={"compile": "yes"})
    message = "AT of small from big; AT+KD of small from big: sync_batch_norm does not go with"
    assert str(raised.value).count("sync_batch_norm") == 1
    assert str(raised.value).startswith(message)


def test_steps_of_an_automatic_beta_are_measured_apart(tmp_path: Path) -> None:
    made = plan(arms={"AT": {}, "AT 9": {"beta": "9"}, "AT auto": {"beta": "auto"}}, seeds="1")
    assert estimate(made, set(), tmp_path, None).kinds == 1 + 2


def test_settings_that_do_not_fit_together_are_found_in_planning() -> None:
    with pytest.raises(InputError, match=r"alone of small from big: .*kd_alpha needs a teacher"):
        plan(arms={"alone": {"teacher": "none", "kd_alpha": "0.9"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {AT: {}, AT: {}}", "it has AT twice"),
        ("arms: &x {AT: {}}", "an alias"),
        ("arms: !!python/object:os.system {}", "a tag"),
        ("arms: " + "{a: " * 7 + "1" + "}" * 7, "a nested value"),
        ("arms: [" * 3000, "is not YAML|a nested value"),
        ("~: 4", "got the name"),
        ("3: 4", "unknown key '3'"),
        ("- a", "must hold 'name: value' lines"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_study(str(path))


def test_a_users_file_may_name_code_only_if_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "data": {"own:data": {}}}))
    with pytest.raises(UntrustedError, match=r"own:data"):
        find_study(str(path))


CODE = {"terms": "own:code"}
"""Settings that name code."""


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": CODE},
        {"data": {"own:code": {}}},
        {"data": {"digits": {"data": "own:code"}}},
        {"teachers": {"big": {"student": "own:code"}}},
        {"teachers": {"big": {"student": "wrn-10-2", "settings": CODE}}},
        {"teachers": {"big": {"student": "wrn-10-2", "on": {"cluttered-digits": CODE}}}},
        {"teachers": {"big": {"student": "wrn-10-2", "ready": {"cluttered-digits": "own:code"}}}},
        {"pairs": {"p": {"student": "own:code", "teacher": "big"}}},
        {"pairs": {"p": {"student": "wrn-10-1", "teacher": "wrn-10-2@random,own:code"}}},
        {"pairs": {"p": {"student": "wrn-10-1", "teacher": "big", "settings": CODE}}},
        {"variants": {"v": CODE}},
        {"arms": {"AT": {"terms": ["dist", "own:code(weight=2)"]}}},
        {"select": {"setting": "terms", "values": ["dist", "own:code(weight=2)"]}},
        {"select": [{"setting": "data", "values": ["own:code", "cifar10"], "arms": "AT"}]},
    ],
)
def test_code_named_anywhere_in_a_users_file_needs_trust(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    assert cli.main(["study", str(path), "--commands"]) == 2
    assert f"{path} names own:code, for which own would be imported" in capsys.readouterr().err
    with trusting(["own:code"]):
        find_study(str(path))


def test_the_command_line_of_a_run_has_its_settings() -> None:
    made = plan()
    words = run_arguments(made.runs[-1], Path("/s"))
    assert words[0] == "distill"
    assert words[words.index("--kd-alpha") + 1] == "0.9"
    assert words[words.index("--epochs") + 1] == "2"
    assert words[words.index("--out") + 1] == "/s/runs/cluttered-digits/small-from-big/at+kd/seed-1"
    assert "--resume-or-start" in words
    assert "--no-report" in words


def finish(folder: Path, made: Plan, wrong: dict[str, int]) -> None:
    """Write the folders of a plan's runs as if they were finished."""
    for run in made.teachers:
        made_run(folder / run.folder, student="wrn-10-2", wrong=(1, 2), probes=False)
    for cell, seeds in made.cells.items():
        for seed, path in seeds.items():
            if not (folder / path).exists():
                count = wrong[cell.arm] + seed
                made_run(folder / path, wrong=tuple(range(count)), probes=False, seed=seed)


def test_results_are_those_of_the_records(tmp_path: Path) -> None:
    value = study(paper={"small from big": {"AT": "7.93 C", "teacher": "5 M"}}, seeds="0-2")
    finish(tmp_path, make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    StudyFolder(value, tmp_path, {}).write()
    document = json.loads((tmp_path / "study.json").read_text())
    assert document["complete"]
    (row,) = document["rows"]
    alone, at, _ = row["arms"]
    assert alone["test_errors"] == {"0": 12.0, "1": 13.0, "2": 14.0}
    assert at["statistics"]["mean"] == 9.0
    assert at["paper"] == {"error": 7.93, "top5_error": None, "mark": "C"}
    assert row["teacher_test_error"] == 2.0
    compared = {(one["arm"], one["baseline"]): one for one in row["comparisons"]}
    assert compared["AT", "alone"]["mean"] == -4.0
    assert compared["AT", "alone"]["established"]
    table = (tmp_path / "table.md").read_text()
    assert "| AT | 3 | 9.00 | 9.00 | 1.00 | 7.93 (C) | vs alone: gain of 4.00 points" in table
    assert "| teacher |  | 2.00 |  |  | 5 (M) |  |" in table
    assert "Mark M at the paper's figures: remembered, not confirmed." in table


def diverge(folder: Path, run: PlannedRun) -> None:
    """Write the folder of a run as if it had diverged."""
    Run.create(folder / run.folder, run.config(folder)).write_divergence("the loss is not finite")


def test_runs_that_diverged_are_counted_and_compared_by_no_seed(tmp_path: Path) -> None:
    value = study(seeds="0-2")
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    for run in made.runs:
        if run.folder.endswith(("/at/seed-1", "at+kd/seed-0", "at+kd/seed-1", "at+kd/seed-2")):
            shutil.rmtree(tmp_path / run.folder)
            diverge(tmp_path, run)
    results = StudyFolder(value, tmp_path, {}).write()
    assert results.complete
    document = json.loads((tmp_path / "study.json").read_text())
    assert (document["runs_finished"], document["runs_diverged"]) == (10 - 4, 4)
    at, combined = document["rows"][0]["arms"][1:]
    assert (at["test_errors"], at["diverged_seeds"]) == ({"0": 8.0, "2": 10.0}, [1])
    assert combined["diverged_seeds"] == [0, 1, 2]
    (difference,) = document["rows"][0]["comparisons"]
    assert (difference["arm"], difference["n"], difference["mean"]) == ("AT", 2, -4.0)
    table = (tmp_path / "table.md").read_text()
    assert "| AT | 2 of 3, 1 diverged | 9.00 |" in table
    assert "| AT+KD | 0 of 3, 3 diverged |  |" in table


def test_a_value_that_diverges_is_never_chosen(tmp_path: Path) -> None:
    value = study(select={"setting": "lr", "values": ["0.1", "9"], "by": "alone"})
    finite, infinite = make_plan(value).selection_runs
    made_run(tmp_path / finite.folder, wrong=tuple(range(90)), probes=False)
    diverge(tmp_path, infinite)
    results = StudyFolder(value, tmp_path, {}).write()
    (selection,) = json.loads((tmp_path / "study.json").read_text())["selections"]
    assert selection["validation_errors"] == {"0.1": 90.0, "9": None}
    assert selection["chosen"] == "0.1"
    assert {run.settings["lr"] for run in results.plan.runs} == {0.1}
    assert "| 0.1: 90.00, 9: diverged | 0.1 |" in (tmp_path / "table.md").read_text()
    shutil.rmtree(tmp_path / finite.folder)
    diverge(tmp_path, finite)
    results = StudyFolder(value, tmp_path, {}).write()
    assert results.plan.selections[0].chosen is None
    assert {run.waits_for for run in results.plan.runs} == {"lr"}
    assert "| 0.1: diverged, 9: diverged | none |" in (tmp_path / "table.md").read_text()


def leave_test_unread(folders: list[Path]) -> None:
    """Change the records of finished runs to those of ``--no-test``: 50, 51, ... % wrong."""
    for number, folder in enumerate(folders):
        content = json.loads((folder / "record.json").read_text())
        content["final"] |= {name: None for name in content["final"] if name.startswith("test_")}
        content["final"]["validation_error"] = 50.0 + number
        (folder / "record.json").write_text(json.dumps(content))


def test_a_study_that_selects_reads_validation_errors(tmp_path: Path) -> None:
    value = study(settings={"epochs": "2", "test": "false"})  # as a file has it
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8, "AT+KD": 8})
    leave_test_unread([tmp_path / run.folder for run in made.all_runs])
    StudyFolder(value, tmp_path, {}).write()
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    found = [error for arm in row["arms"] for error in arm["validation_errors"].values()]
    assert sorted(found) == [51.0 + number for number in range(len(made.runs))]
    assert row["teacher_validation_error"] == 50.0
    table = (tmp_path / "table.md").read_text()
    assert "Validation error in percent over seeds" in table
    assert "## small from big, cluttered-digits: validation error" in table
    assert "test error" not in table.lower()


def test_errors_of_other_images_are_not_compared() -> None:
    arms = {"alone": {"teacher": "none"}, "AT": {"test": "no"}}
    message = (
        "compare AT: its errors are of validation images and those of alone of test images; give "
        "both the same setting test"
    )
    with pytest.raises(InputError, match=message):
        plan(arms=arms)
    assert plan(arms=arms, compare={}).runs


def test_each_arm_of_other_images_is_named_by_them(tmp_path: Path) -> None:
    arms = {"alone": {"teacher": "none"}, "AT": {"test": "no"}}
    value = study(arms=arms, compare={})
    finish(tmp_path, made := make_plan(value), {"alone": 12, "AT": 8})
    leave_test_unread([tmp_path / run.folder for run in made.runs if "/at/" in run.folder])
    StudyFolder(value, tmp_path, {}).write()
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [arm.get("test_errors") for arm in row["arms"]] == [{"0": 12.0, "1": 13.0}, None]
    assert row["arms"][1]["validation_errors"] == {"0": 50.0, "1": 51.0}
    table = (tmp_path / "table.md").read_text()
    assert "Test or validation error in percent" in table
    assert "| AT (validation error) | 2 | 50.50 |" in table


def test_results_of_a_part_of_the_runs_are_written_too(tmp_path: Path) -> None:
    value = study()
    made = make_plan(value)
    made_run(tmp_path / made.runs[0].folder, wrong=(1, 2, 3), probes=False)
    results = StudyFolder(value, tmp_path, {}).write()
    assert not results.complete
    document = json.loads((tmp_path / "study.json").read_text())
    assert document["runs_finished"] == 1
    assert document["rows"][0]["arms"][0]["statistics"]["std"] is None
    assert "| alone | 1 of 2 | 3.00 |" in (tmp_path / "table.md").read_text()
    assert "| AT | 0 of 2 |" in (tmp_path / "table.md").read_text()


def commands(folder: Path, **changes: Any) -> int:
    """Print the commands of a study in a folder; return the exit code."""
    (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return cli.main(
        ["study", str(folder / "small.yaml"), "--commands", "--out", str(folder / "out")]
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder in whose folder ``out`` each run of the small study was begun."""
    for run in plan().all_runs:
        Run.create(tmp_path / "out" / run.folder, run.config(tmp_path / "out"))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": "0-9", "title": "Another title"},
        {"arms": {**SMALL["arms"], "AT 100": {"beta": "100"}}},
        {"arms": {"AT": {}}},
        {"settings": {"epochs": "02"}},
        {"data": ["cluttered-digits", "cifar10"]},
        {
            "teachers": {
                "big": {
                    "student": "wrn-10-2",
                    "ready": {"cifar10": "wrn-10-2@random"},
                    "on": {"cifar100": {"lr": "0.1"}},
                },
                "new": {"student": "wrn-16-2"},
            },
            "data": ["cluttered-digits", "cifar10", "cifar100"],
            "pairs": {
                "small from big": {
                    "student": "wrn-10-1",
                    "teacher": "big",
                    "data": ["cluttered-digits", "cifar10"],
                    "arms": ["alone", "AT"],
                },
                "small from new": {"student": "wrn-10-1", "teacher": "new"},
            },
        },
    ],
)
def test_a_study_may_grow_and_shrink_over_old_results(begun: Path, changes: dict[str, Any]) -> None:
    assert commands(begun, **changes) == 0


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings": {"epochs": "3"}}, "setting epochs was 2, is 3"),
        ({"arms": {**SMALL["arms"], "AT": {"beta": "9"}}}, "setting beta was 1000.0, is 9.0"),
        ({"arms": {"alone": {"attention": "none", "kd_alpha": "1"}}}, "setting teacher was None"),
        (
            {"pairs": {"small from big": {"student": "wrn-10-1", "teacher": "wrn-10-2@random"}}},
            "teachers/cluttered-digits/big, is wrn-10-2@random",
        ),
        ({"teachers": {"big": {"student": "wrn-10-4"}}}, "setting student was wrn-10-2, is wrn-10"),
        ({"cache": False}, "setting cache was "),
        (
            {"select": {"setting": "lr", "values": ["1", "2"]}, "settings": {}},
            "epochs was 2, is 15",
        ),
    ],
)
def test_what_a_run_was_made_from_may_not_change(
    begun: Path, changes: dict[str, Any], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands(begun, **changes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert difference in line
    assert "holds a run with other settings" in line
    assert "restore them, remove that folder, or give another --out" in line


def test_a_studys_folder_may_be_moved(begun: Path) -> None:
    (begun / "out").rename(begun / "deeper")
    arguments = ["--commands", "--out", str(begun / "deeper")]
    (begun / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    assert cli.main(["study", str(begun / "small.yaml"), *arguments]) == 0


def test_another_choice_is_refused_when_it_is_made(begun: Path) -> None:
    select = {"setting": "lr", "values": ["0.1", "0.2"], "by": "alone"}
    assert commands(begun, select=select) == 0  # nothing is chosen yet
    for run in make_plan(study(select=select)).selection_runs:
        made_run(begun / "out" / run.folder, wrong=(1,), probes=False)
        config = run.config(begun / "out")
        write_config_file(config, begun / "out" / run.folder / "config.yaml")
    assert commands(begun, select=select) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 10_000])
def test_a_damaged_study_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=r"study.json is damaged"):
        check_document(tmp_path)


def test_a_study_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema_version": 99, "study": {}}')
    with pytest.raises(InputError, match="schema version 99, expected 1"):
        check_document(tmp_path)


def test_slugs_are_safe_names_of_folders() -> None:
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("...") == "-"
    assert slug("F_sum^2") == "f_sum-2"
    names = ["a" * 300 + end for end in ("b", "c")]
    assert [len(slug(name)) for name in names] == [LONGEST_SLUG] * 2
    assert slug(names[0]) != slug(names[1])


def test_names_of_any_length_have_folders(tmp_path: Path) -> None:
    long = "a" * 200
    made = plan(
        data={long: {"data": "cluttered-digits"}},
        pairs={long: {"student": "wrn-10-1", "teacher": "big"}},
        variants={long: {"epochs": "2"}, "b" * 300: {"epochs": "3"}},
        select={"setting": "terms", "values": [f"dist(beta={'1' * 300})", "dkd"]},
    )
    for run in made.all_runs:
        (tmp_path / run.folder).mkdir(parents=True)
        log = log_file(run, tmp_path)
        log.parent.mkdir(exist_ok=True)
        log.touch()
    assert len(list((tmp_path / "logs").iterdir())) == len(made.all_runs)


def test_list_and_show_need_no_torch(tmp_path: Path) -> None:
    check = (
        "import sys, attention_transfer.cli as cli\n"
        "assert cli.main(['study', 'list']) == 0\n"
        "assert cli.main(['study', 'show', 'table-2']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "table-1" in done.stdout
    assert named_studies()["table-2"].read_text() in done.stdout


def test_commands_are_printed_without_torch_and_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    check = (
        "import sys, attention_transfer.cli as cli\n"
        "assert cli.main(['study', 'small.yaml', '--commands', '--out', 'here']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments[0] == "# teachers: 1"
    assert len([line for line in lines if " train " in line]) == 1 + 2
    assert len([line for line in lines if " distill " in line]) == 4
    assert len([line for line in lines if " cache build " in line]) == 1
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "study needs one name or file"),
        (["table-9"], "unknown study 'table-9'; did you mean table-"),
        (["nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["show", "nowhere.yaml"], "cannot read the configuration nowhere.yaml: No such file"),
        (["a" * 300], "unknown study"),
        (["show", "table-9"], "unknown study 'table-9'; did you mean table-"),
        (["show"], "study needs one name or file"),
        (["table-1", "table-2"], "study needs one name or file"),
        (["table-1", "--processes", "0"], "--processes is 0, expected at least 1"),
        (["table-1", "--recipe", "long"], "recipe is 'long', expected one of paper, short"),
        (["table-1", "--seeds", "x"], "seeds is 'x'"),
        (["table-1", "--data", "cifar10:nowhere"], "data cifar10:nowhere: no whole cifar10"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
