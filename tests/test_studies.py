"""Plans of studies: runs, teachers, caches, lengths and choices, without training anything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import cli
from attention_transfer.cli import study as study_command
from attention_transfer.config import RunConfig
from attention_transfer.config.studies import LONGEST_SLUG, slug
from attention_transfer.config.yaml_files import read_nested_file
from attention_transfer.errors import InputError
from attention_transfer.experiments.study.caches import FROM_FIELDS, FROM_LOGITS
from attention_transfer.experiments.study.estimate import KindCost, estimate
from attention_transfer.experiments.study.files import (
    changed_study,
    find_study,
    named_studies,
    study_of,
)
from attention_transfer.experiments.study.planning import make_plan
from attention_transfer.experiments.study.preflight import needs_images
from attention_transfer.experiments.study.running import StudyFolder
from attention_transfer.experiments.study.workers import log_file
from attention_transfer.transfer import TERMS, PairTerm
from small_study import SMALL, plan, study


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
