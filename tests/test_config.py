"""Configurations: hostile files are refused, sources agree, what is written is read back."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.config import (
    Config,
    DemoConfig,
    DistillConfig,
    EvaluateConfig,
    RunConfig,
    flag_of,
)
from attention_transfer.config.checked import is_optional
from attention_transfer.config.yaml_files import read_config_file, write_config_file
from attention_transfer.errors import InputError

FILE = Path("settings.yaml")
PAIR = {"teacher": "runs/teacher", "student": "wrn-16-1"}


def read(text: str | bytes) -> dict[str, Any]:
    FILE.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_config_file(FILE)


def from_flags(flags: str, config: type[Config] = DistillConfig) -> Config:
    parser = Parser("command", "", ())
    parser.add_config(config)
    return config_from(parser.parse(flags.split()), config)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a tag that runs": ("model: !!python/object/apply:os.system ['touch sentinel']", "tag"),
    "a tag that opens": ("model: !!python/object/apply:builtins.open\n- sentinel\n- w", "tag"),
    "a tag that imports": ("model: !!python/module:this", "tag"),
    "a harmless tag": ("epochs: !!int '3'", "tag"),
    "an alias bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "alias",
    ),
    "a recursive alias": ("a: &a\n  b: *a", "alias"),
    "ten megabytes": ("model: " + "x" * 10_000_000, "it has more than 100,000 bytes"),
    "deep brackets": ("a: " + "[" * 50_000, "nested"),
    "deep braces": ("{a: " * 20_000, "nested"),
    "deep dashes": ("- " * 20_000, "nested"),
    "deep indentation": ("".join(" " * depth + "a:\n" for depth in range(400)), "nested"),
    "one level": ("data:\n  name: cifar10", "'data' is nested"),
    "bytes": (bytes(range(128, 256)), "not UTF-8"),
    "UTF-16": ("model: wrn-16-1".encode("utf-16"), "not UTF-8"),
    "a null byte": ("model: \0", "not YAML"),
    "a list": ("- model", "got a list"),
    "a word": ("model", "got a str"),
    "a number": ("3", "got a str"),
    "a number as key": ("1: 2", "'name: value'"),
    "a list as key": ("? - a\n: b", "not YAML"),
    "a merge key": ("<<: 3", "not YAML"),
    "half a quote": ("model: 'wrn", "not YAML"),
    "two documents": ("model: a\n---\nmodel: b", "not YAML"),
    "a number that Python does not print": ("seed: 0x" + "f" * 20_000, "80000 bits, expected"),
    # PyYAML lets a plain OverflowError out of this.
    "no such character": (r'model: "\Uffffffff"', "not YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_at_once_and_run_nothing(case: str) -> None:
    text, expected = HOSTILE[case]
    imported, began = set(sys.modules), time.process_time()
    with pytest.raises(InputError) as refused:
        read(text)
    assert time.process_time() - began < 1
    message = str(refused.value)
    assert expected in message
    assert "settings.yaml" in message[:45]
    assert len(message) < 500
    assert "this" not in set(sys.modules) - imported
    assert [path.name for path in Path().iterdir()] == ["settings.yaml"]


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "x" * 300])
def test_a_file_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(InputError, match=f"cannot read the configuration {path}: "):
        read_config_file(Path(path))


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "nan", "inf", "1.0e+400", "'-inf'"])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "clip_gradient", "validation"])
def test_numbers_are_finite(name: str, number: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*(finite number|less than|greater than)"):
        RunConfig.checked({"student": "wrn-16-1", **read(f"{name}: {number}")})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("power", 0, "it should be greater than 0"),
        ("beta", -1e-9, "it should be greater than or equal to 0"),
        ("kd_alpha", 1.5, "it should be less than or equal to 1"),
        ("temperature", 0, "it should be greater than 0"),
        ("epochs", 0, "it should be greater than or equal to 1"),
        ("epochs", 2.5, "it should be a valid integer"),
        ("validation", 1, "it should be less than 1"),
        ("seed", -1, "it should be greater than or equal to 0"),
        ("seed", 2**63, "it should be less than 9223372036854775808"),
        ("nesterov", "perhaps", "it should be a valid boolean"),
        ("map", "mean", "expected one of sum, max"),
        ("form", "eq2", "expected one of code, paper, paper-eq2"),
        ("teacher", None, "it should be the network to learn from"),
    ],
)
def test_a_wrong_value_is_shown_with_what_was_expected(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(InputError) as refused:
        DistillConfig.checked({**PAIR, name: value})
    assert str(refused.value).startswith(f"{name} is {value!r}, {expected}")


@pytest.mark.parametrize(
    ("key", "hint"),
    [("betta", "did you mean beta"), ("__class__", ""), ("model_config", ""), ("a\nb", "known: ")],
)
def test_an_unknown_key_is_refused(key: str, hint: str) -> None:
    with pytest.raises(InputError) as refused:
        DistillConfig.checked({**PAIR, key: 3})
    assert str(refused.value).startswith(f"unknown key {key!r}; {hint}")


def test_all_errors_are_told_in_one_line() -> None:
    with pytest.raises(InputError) as refused:
        DistillConfig.checked({"student": "s", "beta": -1, "power": "0", "lrr": 1, "map": "a\nb"})
    message = str(refused.value)
    parts = ["teacher is missing", "beta is -1", "power is '0'", "'lrr'", r"map is 'a\nb'"]
    assert all(part in message for part in parts)
    assert message.count(";") >= len(parts) - 1
    assert "\n" not in message


def test_keys_have_hyphens_or_underscores() -> None:
    hyphens = read("batch-size: 16\nweight-decay: 0\nbeta-schedule: linear")
    assert hyphens == read("batch_size: 16\nweight_decay: 0\nbeta_schedule: linear")
    assert DistillConfig.checked({**PAIR, **hyphens}).batch_size == 16


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_changes_nothing(text: str) -> None:
    assert read(text) == {}


def test_flags_override_the_file_and_the_file_the_defaults() -> None:
    read("teacher: a\nstudent: b\nepochs: 9\nbatch-size: 16\nnesterov: false\nkd_alpha: 0.5")
    config = from_flags("--config settings.yaml --epochs 2 --student c --nesterov --kd-alpha none")
    changed = {"epochs": 2, "batch_size": 16, "kd_alpha": None, "nesterov": True}
    assert config == DistillConfig.checked({"teacher": "a", "student": "c", **changed})


def test_none_switches_optional_settings_off_and_no_others() -> None:
    flags = "--teacher t --student s --kd-alpha none --full-activation-beta none --out none "
    config = from_flags(flags + "--clip-gradient none --attention none")
    assert config == DistillConfig(teacher="t", student="s", attention="none")
    with pytest.raises(InputError, match="beta is 'none'"):
        from_flags("--teacher t --student s --beta none")


@pytest.mark.parametrize("config", [RunConfig, DistillConfig, EvaluateConfig, DemoConfig])
def test_every_setting_is_a_flag_of_the_same_name(config: type[Config]) -> None:
    parser = Parser("command", "", ())
    parser.add_config(config)
    text = parser.format_help()
    assert all(flag_of(name) in text for name in config.model_fields)
    assert all(field.description for field in config.model_fields.values())


ODD = [
    "null",
    "1e3",
    "yes",
    "a: b",
    "- c",
    "#d",
    "[red]x[/red]",
    "*a",
    "!!t",
    " e\n\x1b\u2028é",
    "",
]


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(student="wrn-16-1"),
        RunConfig(student="m", lr=1e-30, weight_decay=0, seed=2**63 - 1, out=Path("a b/ç")),
        DistillConfig(**PAIR),
        DistillConfig(
            **PAIR,
            kd_alpha=0.1 + 0.2,
            full_activation_beta=0,
            clip_gradient=1e300,
            form="paper-eq2",
        ),
        *(DistillConfig(teacher=text, student=text * 30, pairs=text) for text in ODD),
    ],
)
def test_a_configuration_is_read_back_as_it_was_written(config: Config) -> None:
    write_config_file(config, FILE)
    written = FILE.read_bytes()
    again = type(config).checked(read_config_file(FILE))
    assert again == config
    write_config_file(again, FILE)
    assert FILE.read_bytes() == written


def test_a_configuration_is_frozen_and_replaced_by_a_checked_one() -> None:
    config = DistillConfig(**PAIR)
    with pytest.raises(ValidationError, match="frozen"):
        config.beta = 3.0
    assert config.replace(beta=3).beta == 3
    assert config.beta == 1000
    with pytest.raises(InputError, match="beta is -3"):
        config.replace(beta=-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention", "activation"),
        ("map", "sum"),
        ("power", 2),
        ("form", "code"),
        ("beta", 1000),
        ("beta_schedule", None),
        ("schedule_of_beta", "constant"),
        ("pairs", "auto"),
        ("kd_alpha", None),
        ("full_activation_beta", None),
        ("data", "cluttered-digits"),
        ("data_seed", 0),
        ("out", None),
    ],
)
def test_defaults_are_the_documented_ones(name: str, value: object) -> None:
    assert getattr(from_flags("--teacher a --student b"), name) == value


def _all_configurations(base: type[Config]) -> Iterator[type[Config]]:
    for config in base.__subclasses__():
        yield config
        yield from _all_configurations(config)


@pytest.mark.parametrize("config", _all_configurations(Config), ids=lambda config: config.__name__)
def test_a_setting_whose_help_offers_none_takes_it(config: type[Config]) -> None:
    for name, field in config.model_fields.items():
        if re.search(r"\bnone: ", field.description or ""):
            assert is_optional(field), name
