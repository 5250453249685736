"""Bad input at the real entry point: one line, exit code 2, nothing written."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from attention_transfer import network_inputs
from attention_transfer.cli import COMMANDS, main
from attention_transfer.cli.output import console, print_table
from attention_transfer.config import (
    DistillConfig,
    RunConfig,
)
from attention_transfer.config.yaml_files import read_config_file, write_config_file
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError
from attention_transfer.models import ModelCard, build
from attention_transfer.training import setup


@pytest.fixture(autouse=True)
def _small_data(monkeypatch: pytest.MonkeyPatch, data: DataSet) -> None:
    original = network_inputs.load_data

    def load(name: str, **settings: Any) -> DataSet:
        return data if name == "cluttered-digits" else original(name, **settings)

    monkeypatch.setattr(network_inputs, "load_data", load)


def listing() -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in Path().rglob("*")}


def write_run(folder: str, classes: int) -> None:
    Path(folder).mkdir()
    network = build("wrn-10-1", classes)
    save_file(network.state_dict(), Path(folder) / "model.safetensors")
    names = tuple(f"class {index}" for index in range(classes))
    card = ModelCard("wrn-10-1", names, (3, 16, 16), (0.4,) * 3, (0.3,) * 3, "cluttered-digits")
    card.write(Path(folder) / "model.json")


class Malice:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (open, ("sentinel", "w"))  # type: ignore[return-value]


def prepare_folder() -> None:
    """Everything the cases below need; the test's own folder is the working directory."""
    write_run("teacher", 3)
    write_run("other-classes", 5)
    Path("busy").mkdir()
    Path("busy/file.txt").write_text("something")
    Path("a-run").mkdir()
    Path("a-run/config.yaml").write_text("student: wrn-16-1\n")
    Path("finished").mkdir()
    Path("finished/config.yaml").write_text("student: wrn-16-1\n")
    Path("finished/record.json").write_text("{}")
    Path("a-file").write_text("")
    Path("empty").mkdir()
    Path("pickle.pt").write_bytes(pickle.dumps(Malice()))
    whole = Path("teacher/model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("settings.yaml").write_text("student: wrn-10-1\nbetta: 3\n")


DISTILL = "distill --teacher teacher --student wrn-10-1 "
TRAIN = "train --model wrn-10-1 "
CASES = {
    "no such command": ("distil", "unknown command 'distil'; did you mean distill?"),
    "unknown flag": (
        DISTILL + "--batchsize 3",
        "unknown flag --batchsize; did you mean --batch-size",
    ),
    "stray argument": (TRAIN + "now", "unexpected argument 'now'"),
    "flag without value": (TRAIN + "--epochs", "--epochs: expected one argument"),
    "missing flag": ("train", "model is missing"),
    "unknown model": ("train --model wnr-16-1", "unknown model 'wnr-16-1'; did you mean wrn-16-1"),
    "depth not 6n+4": ("train --model wrn-17-2", r"6n\+4.*got 17"),
    "unknown data": (TRAIN + "--data cifar11", "did you mean cifar10"),
    "empty data folder": (TRAIN + "--data cifar10:empty", "no whole cifar10 in empty.*--download"),
    "missing data folder": (TRAIN + "--data cifar100:nowhere", "no whole cifar100 in nowhere"),
    "unknown key": (DISTILL + "--config settings.yaml", "unknown key 'betta'; did you mean beta"),
    "missing file": (DISTILL + "--config none.yaml", "cannot read the configuration none.yaml"),
    "unknown point": (DISTILL + "--pairs grup1:group1", "no point 'grup1'; did you mean group1"),
    "half a pair": (DISTILL + "--pairs group1", "expected student.layer:teacher.layer"),
    "pair of vectors": (DISTILL + "--pairs classifier:group1", r"it has no positions"),
    "teacher without weights": (
        "distill --teacher wrn-16-2 --student wrn-10-1",
        r"no pretrained weights.*folder of a run.*@FILE\.safetensors.*@random",
    ),
    "teacher pretrained": (
        "distill --teacher nin-wide@pretrained --student wrn-10-1",
        "nin-wide has no pretrained weights",
    ),
    "power zero": (DISTILL + "--power 0", "power is '0', it should be greater than 0"),
    "power negative": (DISTILL + "--power -1", "power is '-1'"),
    "beta negative": (DISTILL + "--beta -1", "beta is '-1', it should be greater than or equal"),
    "alpha above one": (DISTILL + "--kd-alpha 1.5", "kd_alpha is '1.5'.*less than or equal to 1"),
    "not a number": (TRAIN + "--lr nan", "lr is 'nan', it should be a finite number"),
    "unknown choice": (DISTILL + "--map mean", "map is 'mean', expected one of sum, max"),
    "all errors together": (DISTILL + "--beta -1 --power 0", "power is '0'.*; beta is '-1'"),
    "other classes": (
        "distill --teacher other-classes --student wrn-10-1 --kd-alpha 0.9",
        r"same classes.*\(1, 3\).*\(1, 5\)",
    ),
    "out holds a run": (TRAIN + "--out a-run", "already holds a run.*resume a-run"),
    "out is busy": (TRAIN + "--out busy", "busy exists and is not an empty folder"),
    "out is a file": (TRAIN + "--out a-file", "a-file exists and is not an empty folder"),
    "weights do not fit": (
        "train --model wrn-10-2@teacher/model.safetensors",
        "does not fit WideResNet.*expected",
    ),
    "weights missing": (
        "train --model wrn-10-1@none.safetensors",
        "no weights at none.safetensors",
    ),
    "weights are a pickle": (
        "distill --teacher wrn-10-1@pickle.pt --student wrn-10-1",
        "pickle.pt is a pickle that torch.save did not write.*import pathlib, pickle, torch; ",
    ),
    "weights cut short": (
        "train --model wrn-10-1@cut.safetensors",
        "cut.safetensors is cut: ",
    ),
    "folder without a network": (
        "distill --teacher empty --student wrn-10-1",
        "empty holds no trained network",
    ),
    "nothing to transfer": (DISTILL + "--attention none", "nothing to transfer"),
    "fp16 without a GPU": (TRAIN + "--precision fp16", "fp16 needs a GPU"),
    "resume nothing": ("resume empty", "empty holds no run"),
    "resume a finished run": ("resume finished", "finished; there is nothing to resume"),
    "evaluate without data": (
        "evaluate wrn-10-1@teacher/model.safetensors",
        "give --data DATA",
    ),
    "evaluate nothing": ("evaluate", "model is missing"),
    "demo into a file": ("demo --out a-file", "a-file exists"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = CASES[case]
    prepare_folder()
    before = listing()
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(expected, printed.err), printed.err
    assert listing() == before
    assert not Path("sentinel").exists()


def test_the_installed_command_does_the_same() -> None:
    command = [sys.executable, "-m", "attention_transfer", "distill", "--student", "wrn-16-1"]
    command += ["--teacher", "wrn-16-2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    loading, *waits, error = done.stderr.splitlines()
    assert loading == "attention-transfer: loading PyTorch ..."
    assert all(line.endswith(" ...") for line in waits)
    assert error.startswith("attention-transfer: wrn-16-2 has no pretrained weights")
    assert not listing()


def test_attention_needs_no_classes_in_common() -> None:
    prepare_folder()
    config = DistillConfig.checked({"teacher": "other-classes", "student": "wrn-10-1"})
    run_setup = setup.set_up_run(config)
    assert len(run_setup.transfer.pair_descriptions) == 3


def test_help_answers_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert command.EXAMPLES[0] in capsys.readouterr().out


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    prepare_folder()
    assert main(["doctor", "--json"]) == 0
    assert {"versions", "extras", "machine", "precision"} <= set(
        json.loads(capsys.readouterr().out)
    )
    small = "--epochs 1 --batch-size 16 --precision fp32 --lr 0.01 --json"
    assert main((DISTILL + "--kd-alpha none --out student " + small).split()) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["folder"] == "student"
    assert "epoch 1/1" in printed.err


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(False), ["name", "error"], [["[red]x[/red]", "1"]])
    assert "[red]x[/red]" in capsys.readouterr().out


HOSTILE = {
    "tag": ("model: !!python/object/apply:os.system ['touch sentinel']", "tag"),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]", "alias"),
    "nesting": ("a: " + "[" * 5000, "nested"),
    "indented nesting": (
        "\n".join("  " * depth + "a:" for depth in range(300)),
        "'a' is nested",
    ),
    "size": ("a: " + "x" * 200_000, "more than 100,000 bytes"),
    "list": ("- a\n- b", "got a list"),
    "not YAML": ("a: 'x", "not YAML"),
    "number as key": ("1: 2", "name: value"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configurations_are_refused(case: str) -> None:
    text, expected = HOSTILE[case]
    Path("hostile.yaml").write_text(text)
    with pytest.raises(InputError, match=expected):
        RunConfig.checked(read_config_file(Path("hostile.yaml")))
    assert not Path("sentinel").exists()


def test_bytes_that_are_no_text_are_refused() -> None:
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="UTF-8"):
        read_config_file(Path("binary.yaml"))


def test_files_are_overridden_by_flags_and_read_back_as_they_were_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare_folder()
    config = DistillConfig.checked(
        {"teacher": "teacher", "student": "wrn-10-1", "kd_alpha": 0.5, "out": "somewhere"}
    )
    write_config_file(config, Path("whole.yaml"))
    assert DistillConfig.checked(read_config_file(Path("whole.yaml"))) == config
    Path("some.yaml").write_text("teacher: teacher\nstudent: wrn-10-1\nbatch-size: 16\nepochs: 9\n")
    flags = "--config some.yaml --epochs 1 --precision fp32 --out run --lr 0.01 --json"
    assert main(["distill", *flags.split()]) == 0
    asked = json.loads(capsys.readouterr().out)["config"]
    assert (asked["epochs"], asked["batch_size"]) == (1, 16)


def test_defaults_are_the_documented_ones() -> None:
    config = DistillConfig.checked({"teacher": "a", "student": "b"})
    assert (config.attention, config.map, config.power, config.form) == (
        "activation",
        "sum",
        2,
        "code",
    )
    assert (config.beta, config.schedule_of_beta, config.pairs) == (1000, "constant", "auto")
    assert config.kd_alpha is None
    assert config.full_activation_beta is None
    assert config.data_seed == 0
