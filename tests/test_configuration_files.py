"""Configuration files: a value means what a flag with the same text means."""

from pathlib import Path

import pytest

from attention_transfer.cli import main
from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.config import CacheConfig, DistillConfig
from attention_transfer.config.yaml_files import read_config_file
from attention_transfer.errors import InputError

PAIR = "teacher: t\nstudent: s\n"


def config_of(lines: str, pair: str = PAIR) -> DistillConfig:
    Path("settings.yaml").write_text(pair + lines)
    parser = Parser("distill", "", ())
    parser.add_config(DistillConfig)
    return config_from(parser.parse(["--config", "settings.yaml"]), DistillConfig)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("seed: 0010", 10),  # YAML 1.1: 8
        ("seed: 1_000", 1000),
        ("seed: 0x10", 16),
        ("seed: 0o17", 15),
        ("lr: 1e-3", 0.001),  # YAML 1.1: text
        ("lr: .5", 0.5),
        ("beta: 1_000", 1000.0),
        ("nesterov: no", False),
        ("nesterov: Off", False),
        ("nesterov: true", True),
        ("out: 2026-01-02", Path("2026-01-02")),  # YAML 1.1: a date
        ("out: 10", Path("10")),
        ("out: 1:30", Path("1:30")),  # YAML 1.1: 90
        ("out: on", Path("on")),  # YAML 1.1: True
        ("data: no", "no"),
        ("data: 007", "007"),
        ("image_size: 32", "32"),
        ("kd_alpha: none", None),
        ("kd_alpha: ~", None),
        ("kd_alpha:", None),
        ("freeze: 'null'", "null"),
        ("pairs: [a:b, c:d]", "a:b,c:d"),
        ("track: [wandb, mlflow]", "wandb,mlflow"),
        ("attention: [gradient, activation]", "activation,gradient"),
        ("flip-classes: [0, 1, 08]", "0,1,08"),
    ],
)
def test_a_value_is_what_a_flag_would_make_of_it(line: str, value: object) -> None:
    name = line.partition(":")[0].replace("-", "_")
    assert getattr(config_of(line), name) == value


@pytest.mark.parametrize("lines", ["teacher: [a, b@f]", "teacher:\n- a\n- b@f"])
def test_several_teachers_may_be_a_list(lines: str) -> None:
    assert config_of(lines + "\n", "student: s\n").teacher == "a,b@f"
    Path("cache.yaml").write_text(lines + "\ncache: c\n")
    assert CacheConfig.checked(read_config_file(Path("cache.yaml"))).teacher == "a,b@f"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("lr: 1:30", "lr is '1:30', it should be a valid number"),
        ("epochs: 2026-01-02", "epochs is '2026-01-02', it should be a valid integer"),
        ("epochs: 2020-13-45", "epochs is '2020-13-45', it should be a valid integer"),
        ("seed: 0x_", "seed is '0x_', it should be a valid integer"),
        ("seed: " + "1" * 5_000, "seed is '111"),
        ("lr: 1" + ":59" * 30_000, "lr is '1:59"),
        ("student: [a, b]", r"student is \['a', 'b'\], it should be a valid string"),
        ("pairs: [[a], b]", "line 3: .*got a list in a list"),
        ("pairs: [a, ]\nterms: [a, ~]", "the list 'terms' has an empty item"),
        ("pairs: {a: b}", "line 3: .*got a nested value"),
        ("pairs:\n  a: b", "'pairs' is nested; give a plain value, or a list of them"),
        ("terms:\n- a: b", "'terms' is nested"),
        ("terms: [a: b]", "'terms' is nested"),
        ("seed: 1\nseed: 2", "it has seed twice"),
        ("data-seed: 1\ndata_seed: 2", "it has data_seed twice"),
        ("seed: !!int 3", "line 3: .*got a tag"),
        ("1: 2", "got the name '1'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(lines: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as refused:
        config_of(lines, "teacher: t\nout: o\n")
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_a_list_of_plain_values_is_a_list_of_text() -> None:
    Path("maps.yaml").write_text("models: [1e3, no]\nimages: 007\n")
    assert read_config_file(Path("maps.yaml")) == {"models": ["1e3", "no"], "images": "007"}


def test_the_command_says_what_a_flag_would_say(capsys: pytest.CaptureFixture[str]) -> None:
    Path("settings.yaml").write_text("student: wrn-10-1\nlr: 1:30\n")
    told = []
    for flags in ("--config settings.yaml", "--model wrn-10-1 --lr 1:30"):
        assert main(f"train {flags}".split()) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "lr is '1:30'" in told[0]
