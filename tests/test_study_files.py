"""Files of studies: what is wrong in them, and the code that they name."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer import cli
from attention_transfer.errors import InputError, UntrustedError
from attention_transfer.experiments.study.estimate import estimate
from attention_transfer.experiments.study.files import (
    find_study,
    study_of,
)
from attention_transfer.experiments.study.planning import make_plan
from attention_transfer.experiments.study.workers import run_arguments
from attention_transfer.trust import trusting
from small_study import SMALL, plan, study

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
