"""The command line: bad input gives one line and writes nothing; help, versions and tables."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attention_transfer import network_inputs
from attention_transfer.cli import COMMANDS, main
from attention_transfer.cli.output import console, print_table
from attention_transfer.config import DistillConfig, TrainingConfig, flag_of
from attention_transfer.data import DataSet, ImageSet, load_data
from attention_transfer.experiments import demo
from attention_transfer.models import ModelCard, build
from attention_transfer.runs.checkpoints import Checkpoint, save_checkpoint
from attention_transfer.training import RunProgress, model_evaluation, setup

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny() -> DataSet:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    images = ImageSet(torch.from_numpy(pixels), torch.arange(40) % 10)
    third = (1 / 3,) * 3
    return DataSet("tiny", images, images, images, tuple("0123456789"), third, third)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tiny: DataSet) -> None:
    """Replace the embedded images, which take seconds to draw, by random ones; hide the GPU."""

    def load(name: str, **settings: Any) -> DataSet:
        return tiny if name == "cluttered-digits" else load_data(name, **settings)

    for module in (network_inputs, model_evaluation, demo):
        monkeypatch.setattr(module, "load_data", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class Malice:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("sentinel", "w")


MALICE = pickle.dumps(Malice(), protocol=2)


def write_run(folder: Path, classes: int, **card: Any) -> None:
    folder.mkdir()
    save_file(build("wrn-10-1", classes).state_dict(), folder / "model.safetensors")
    names = tuple("0123456789"[:classes])
    third = (1 / 3,) * 3
    ModelCard("wrn-10-1", names, (3, 32, 32), third, third, "tiny").write(folder / "model.json")
    if card:
        values = json.loads((folder / "model.json").read_text()) | card
        (folder / "model.json").write_text(json.dumps(values))


def write_begun(folder: Path, model: str) -> Path:
    """Write a run folder with only a configuration; return its checkpoints folder."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"student: {model}\n")
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files and folders that the cases below use."""
    root = tmp_path_factory.mktemp("material")
    write_run(root / "teacher", 10)
    write_run(root / "three", 3)
    write_run(root / "card-number", 10, class_names=3)
    write_run(root / "card-name", 10, name=3)
    write_run(root / "card-mean", 10, mean=["a", "b", "c"])
    write_run(root / "card-deep", 10)
    (root / "card-deep/model.json").write_text("[" * 100_000)
    write_run(root / "card-stub", 10)
    (root / "card-stub/model.json").write_text("{}")

    write_begun(root / "begun", "wrn-10-1")
    write_begun(root / "finished", "wrn-10-1")
    (root / "finished/record.json").write_text("{}")
    weights = build("wrn-10-1", 10).state_dict()
    state = {"transfer": {f"student.{name}": value for name, value in weights.items()}}
    save_checkpoint(write_begun(root / "edited", "wrn-10-2"), Checkpoint(1, 0, state))
    checkpoint = write_begun(root / "crafted", "wrn-10-1") / "epoch-0001-step-0000000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(MALICE)
    checksum = hashlib.sha256((checkpoint / "state.pt").read_bytes()).hexdigest()
    (checkpoint / "sha256").write_text(checksum)

    (root / "pickle.safetensors").write_bytes(MALICE)
    torch.save(Malice(), root / "torch.pt")
    whole = (root / "teacher/model.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "cut-header.safetensors").write_bytes(whole[:20])
    (root / "long-header.safetensors").write_bytes(b"\xff" * 64)
    (root / "blank.safetensors").touch()

    (root / "empty").mkdir()
    (root / "busy").mkdir()
    (root / "busy/thesis.tex").write_text("years of work")
    (root / "a-file").write_text("something")
    (root / "typo.yaml").write_text("teacher: teacher\nstudent: wrn-10-1\nbetta: 3\n")
    (root / "tag.yaml").write_text("model: !!python/object/apply:os.system ['touch sentinel']\n")
    (root / "null-out.yaml").write_text('student: wrn-10-1\nout: "a\\0b"\n')
    return root


def snapshot() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


DISTILL = "distill --teacher teacher --student wrn-10-1"
TRAIN = "train --model wrn-10-1"
LONG = "x" * 300

BAD: dict[str, tuple[str, str]] = {
    # The line itself.
    "no such command": ("distil", "unknown command 'distil'; did you mean distill"),
    "nothing like a command": ("--frobnicate", "unknown command.*known: demo, train, distill"),
    "unknown flag": (f"{DISTILL} --bta 3", "unknown flag --bta; did you mean --beta"),
    "unknown flag with a value": (f"{TRAIN} --epoch=3", "--epoch; did you mean --epochs"),
    "abbreviated flag": (f"{TRAIN} --mom 0.5", "unknown flag --mom"),
    "stray argument": (f"{TRAIN} now", "unexpected argument 'now'; see .*train --help"),
    "flag without a value": (f"{TRAIN} --epochs", "--epochs: expected one.*train --help"),
    "no model": ("train", "model is missing: the network to train, such as --model wrn"),
    "no student": ("distill --teacher teacher", "student is missing: .*such as wrn-16-1"),
    "no folder": ("resume", "required: DIR; see .*resume --help"),
    "ANSI codes in a flag": ("train --\x1b[31mx", "unknown flag"),
    "ANSI codes in a path": ("train --config \x1b[31mx", "cannot read the configuration"),
    # Settings.
    "unknown key": ("distill --config typo.yaml", "unknown key 'betta'; did you mean beta"),
    "hostile file": ("train --config tag.yaml", "tag.yaml line 1: expected plain.*got a tag"),
    "missing file": ("train --config none.yaml", "cannot read the configuration none.yaml: No"),
    "power 0": (f"{DISTILL} --power 0", "power is '0', it should be greater than 0"),
    "power negative": (f"{DISTILL} --power -2", "power is '-2', it should be greater than 0"),
    "beta negative": (f"{DISTILL} --beta -1", "beta is '-1', it should be greater than or equal"),
    "kd-alpha 1.5": (f"{DISTILL} --kd-alpha 1.5", "kd_alpha is '1.5', it should be less than"),
    "lr nan": (f"{TRAIN} --lr nan", "lr is 'nan', it should be a finite number"),
    "lr a word": (f"{TRAIN} --lr fast", "lr is 'fast', it should be a valid number"),
    "unknown choice": (f"{DISTILL} --map mean", "map is 'mean', expected one of sum, max"),
    "several at once": (f"{DISTILL} --beta -1 --power 0", "power is '0'.*; beta is '-1'"),
    "nothing to transfer": (
        f"{DISTILL} --attention none",
        "nothing to transfer: attention is none.*kd_alpha.*full_activation.*train",
    ),
    "fp16 without a GPU": (f"{TRAIN} --precision fp16", "fp16 needs a GPU.*bf16 or fp32"),
    "demo in fp16": ("demo --precision fp16", "fp16 needs a GPU.*bf16 or fp32"),
    # Data.
    "unknown data": (f"{TRAIN} --data cifar11", "unknown data 'cifar11'; did you mean cifar10"),
    "nothing like data": (f"{TRAIN} --data x", "unknown data 'x'; known: cluttered-digits, cifar"),
    "empty data folder": (
        f"{TRAIN} --data cifar10:empty",
        "no whole cifar10 in empty.*expected the extracted.*--download.*--data cifar10:DIR",
    ),
    "missing data folder": (
        f"{TRAIN} --data cifar100:nowhere",
        "no whole cifar100 in nowhere.*expected the extracted.*--download",
    ),
    # Networks.
    "no run to evaluate": ("evaluate runs/none", "there is no such folder or file; expected the"),
    "unknown model": ("train --model wnr-16-1", "unknown model 'wnr-16-1'; did you mean wrn-16-1"),
    "depth not 6n+4": ("train --model wrn-17-2", r"must be 6n\+4 \(10, 16, .*got 17"),
    "width 0": ("train --model wrn-16-0", "at least 1, got width 0"),
    "teacher by name": (
        "distill --teacher wrn-16-2 --student wrn-10-1",
        r"wrn-16-2 has no pretrained weights.*folder of a run.*@FILE\.safetensors.*@random",
    ),
    "teacher pretrained": (
        "distill --teacher wrn-16-2@pretrained --student wrn-10-1",
        r"wrn-16-2 has no pretrained weights.*folder of a run.*@FILE\.safetensors.*@random",
    ),
    "teacher of other classes": (
        "distill --teacher three --student wrn-10-1 --kd-alpha 0.9",
        r"same classes, got student \(1, 10\) and teacher \(1, 3\); use a teacher of the same",
    ),
    "no network in the folder": (
        "distill --teacher empty --student wrn-10-1",
        "empty holds no trained network.*expected the folder of a finished run",
    ),
    "name too long": (f"train --model {LONG}", "unknown model"),
    # Points.
    "unknown student point": (
        f"{DISTILL} --pairs grup1:group1",
        "WideResNet has no point 'grup1'; did you mean group1",
    ),
    "unknown teacher point": (
        "distill --teacher teacher --student nin-thin --pairs block1:blok1",
        "WideResNet has no point 'blok1'; known: stem, group1",
    ),
    "one name": (f"{DISTILL} --pairs group1", "got the pair 'group1', expected student.layer:teac"),
    "three names": (f"{DISTILL} --pairs a:b:c", "got the pair 'a:b:c', expected student.layer:"),
    "half a pair": (f"{DISTILL} --pairs group1:", "got the pair 'group1:', expected student"),
    "a point of vectors": (f"{DISTILL} --pairs classifier:group1", "it has no positions"),
    # Weights.
    "other width": (
        "distill --teacher wrn-10-2@teacher/model.safetensors --student wrn-10-1",
        r"does not fit WideResNet: missing: .*; of another shape: \S+ \(.*\), expected \(.*; give",
    ),
    "other depth": (
        "train --model wrn-16-1@teacher/model.safetensors",
        r"does not fit WideResNet: missing: group1\.1.* more; give weights of the same",
    ),
    "no weights file": (
        "train --model wrn-10-1@none.pt",
        "no weights at none.pt, which does not",
    ),
    "a pickle": (
        "train --model wrn-10-1@pickle.safetensors",
        "not a safetensors file, but pickled.*pickled weights are not loaded.*save_file",
    ),
    "a torch file": (
        "distill --teacher wrn-10-1@torch.pt --student wrn-10-1",
        r"torch\.pt holds a whole pickled network, .*running code; .* convert it: import torch; ",
    ),
    "cut": ("train --model wrn-10-1@cut.safetensors", "cut.safetensors is cut: it has "),
    "cut header": ("train --model wrn-10-1@cut-header.safetensors", "is cut: .*its header alone"),
    "long header": ("train --model wrn-10-1@long-header.safetensors", "no file of weights: it beg"),
    "blank": ("train --model wrn-10-1@blank.safetensors", "blank.safetensors is empty"),
    "card without fields": (
        "distill --teacher card-stub --student wrn-10-1",
        "card-stub/model.json is not a model card",
    ),
    **{
        f"damaged {card}": (
            f"distill --teacher {card} --student wrn-10-1",
            f"{card}/model.json is not a model card",
        )
        for card in ("card-number", "card-name", "card-mean", "card-deep")
    },
    # Where to write.
    "out holds a run": (f"{TRAIN} --out begun", "begun already holds a run; choose .*resume begun"),
    "out is busy": (f"{TRAIN} --out busy", "busy exists and is not an empty folder; choose anoth"),
    "out is a file": (f"{TRAIN} --out a-file", "a-file exists and is not an empty folder; choose"),
    "out is below a file": (f"{TRAIN} --out a-file/run", "cannot write to a-file/run.*choose"),
    "out is too long": (f"{TRAIN} --out {LONG}", "cannot write to x+.*choose another --out"),
    "out is no path": (
        "train --config null-out.yaml",
        "out has a null byte, which no name or path has",
    ),
    "demo in a file": ("demo --out a-file", "a-file exists and is not an empty folder; choose"),
    "demo below a file": ("demo --out a-file/run", "cannot write to a-file/run.*choose another"),
    # Going on, evaluate.
    "resume nothing": ("resume empty", r"empty holds no run \(no config.yaml\)"),
    "resume nowhere": ("resume nowhere", "there is no folder nowhere, expected a run's folder"),
    "resume a finished run": ("resume finished", "run in finished is finished; .*nothing to resum"),
    "resume another network": ("resume edited", "edited"),
    "resume a pickle": ("resume crafted", "crafted"),
    "resume a name too long": (f"resume {LONG}", "there is no folder x+, expected a run"),
    "evaluate nothing": ("evaluate", "model is missing: a run folder"),
    "evaluate without data": (
        "evaluate wrn-10-1@teacher/model.safetensors",
        "does not say what it was trained on; give --data DATA",
    ),
    "evaluate without weights": (
        "evaluate wrn-16-2 --data cluttered-digits",
        "wrn-16-2 has no pretrained weights; give the folder of a run",
    ),
    "evaluate on other classes": (
        "evaluate three --data cluttered-digits",
        "three was trained on the classes 0, 1, 2, tiny has 0, 1, 2, 3, 4, ..., 9",
    ),
}


def check_refusal(code: int, out: str, err: str, expected: str) -> None:
    assert (code, out) == (2, "")
    assert err.startswith("attention-transfer: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable(), "more than one line, or control characters"
    assert "Traceback" not in err
    assert re.search(expected, err), err


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, material: Path, capsys: Capture
) -> None:
    command, expected = BAD[case]
    shutil.copytree(material, ".", dirs_exist_ok=True)
    before = snapshot()
    code = main(command.split())
    check_refusal(code, *capsys.readouterr(), expected)
    assert snapshot() == before
    assert "sentinel" not in before


def test_the_malicious_pickle_runs_code_when_it_is_loaded() -> None:
    pickle.loads(MALICE).close()
    assert Path("sentinel").exists()


def program(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "attention_transfer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("case", ["no such command", "unknown key", "a pickle"])
def test_the_program_does_the_same(case: str, material: Path) -> None:
    command, expected = BAD[case]
    shutil.copytree(material, ".", dirs_exist_ok=True)
    before = snapshot()
    done = program(*command.split())
    lines = done.stderr.splitlines(keepends=True)
    error = "".join(line for line in lines if not line.endswith(" ...\n"))  # what it waited for
    check_refusal(done.returncode, done.stdout, error, expected)
    assert snapshot() == before


def test_attention_needs_no_classes_in_common(material: Path) -> None:
    config = DistillConfig(teacher=str(material / "three"), student="wrn-10-1", precision="fp32")
    prepared = setup.set_up_run(config)
    assert len(prepared.transfer.pair_descriptions) == 3
    assert len(prepared.card.class_names) == 10


def answer(arguments: list[str]) -> int | str | None:
    """Return the exit code, whether main returns it or argparse exits with it."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_examples(name: str, flag: str, capsys: Capture) -> None:
    assert answer([name, flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"usage: attention-transfer {name}" in out
    assert f"examples:\n  attention-transfer {COMMANDS[name].EXAMPLES[0]}" in out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_command_and_where_to_start(
    arguments: list[str], capsys: Capture
) -> None:
    assert answer(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "start here: attention-transfer demo" in out
    assert all(re.search(rf"^  {name} +\S", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"]])
def test_help_is_quick_because_torch_is_not_imported(arguments: list[str]) -> None:
    done = program(*arguments, options=("-X", "importtime"))
    assert done.returncode == 0
    assert "attention-transfer" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "attention_transfer.cli" in imported
    assert not {name for name in imported if re.match(r"(torch|torchvision|accelerate)\b", name)}


def test_the_version_is_the_packages(capsys: Capture) -> None:
    assert answer(["--version"]) == 0
    assert re.fullmatch(r"attention-transfer \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_points_of_one_network_as_a_table_and_as_json(capsys: Capture) -> None:
    assert main(["points", "wrn-16-1", "--image-size", "32x48"]) == 0
    text = capsys.readouterr().out
    assert "wrn-16-1 on 3x32x48 images" in text
    assert re.search(r"^\* group2 +\w+ +feature map +32 +16x24 +2 ", text, re.MULTILINE)
    assert main(["points", "wrn-16-1", "--image-size", "32x48", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["input_size"] == [3, 32, 48]
    recommended = [point for point in document["points"] if point["recommended"]]
    assert [(point["name"], point["height"], point["width"]) for point in recommended] == [
        ("group1", 32, 48),
        ("group2", 16, 24),
        ("group3", 8, 12),
    ]


def test_points_of_a_student_and_its_teachers(capsys: Capture) -> None:
    command = ["points", "wrn-16-1", "--pair", "wrn-16-2, nin-thin"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [network["model"] for network in document["teachers"]] == ["wrn-16-2", "nin-thin"]
    pair = document["pairs"][2]
    assert (pair["student"], pair["teacher"]) == ("group3", "0.group3+1.block3")
    assert pair["student_shape"] == [64, 8, 8]
    assert pair["map"] == [8, 8]
    assert pair["effective_weight"] == pytest.approx(1000 / 64)
    assert main(command) == 0
    assert "wrn-16-1 attends like wrn-16-2 and nin-thin" in capsys.readouterr().out
    assert main(["points", "timm:no-such-network"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_doctor_prints_one_json_document() -> None:
    done = program("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert {"versions", "extras", "machine", "precision"} <= set(json.loads(done.stdout))
    assert not list(Path().iterdir())


def test_doctor_prints_tables_for_people(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("torch", "cores", "--precision auto means", "extra demo"))


def show(name: str) -> None:
    """Print a name wherever one can appear: a table's title, head and cells, and progress lines."""
    print_table(console(False), [name, "error"], [[name, "1"]], title=name)
    RunProgress(console(False)).write_line(name)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[link=file:///]x", ":x:", "a\\", "=1+1"])
def test_names_are_shown_as_they_are(name: str, capsys: Capture) -> None:
    show(name)
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "\b\b\bx"])
def test_no_control_codes_reach_the_terminal(name: str, capsys: Capture) -> None:
    show(name)
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_runs_print_their_folder(capsys: Capture) -> None:
    quick = ["--epochs", "1", "--lr", "0.01", "--precision", "fp32"]
    assert main(["train", "--model", "wrn-10-1", "--out", "[b]:x:", *quick]) == 0
    assert "the run is in [b]:x:" in capsys.readouterr().out
    distill = ["distill", "--teacher", "[b]:x:", "--student", "wrn-10-1", "--out", "student"]
    assert main([*distill, "--kd-alpha", "0.9", "--json", *quick]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["folder"] == "student"
    assert "wrn-10-1 epoch 1/1" in err
    assert main(["evaluate", "student", "--data", "cluttered-digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 40


@pytest.mark.parametrize("command", ["train", "distill"])
def test_flags_are_in_groups_and_none_is_missing(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    headings = re.findall(r"^(\w[^\n]*):$", text, re.MULTILINE)
    assert headings[:2] == ["options", "what is trained"]
    assert headings[-2:] == ["the run", "examples"]
    config = DistillConfig if command == "distill" else TrainingConfig
    for name in config.model_fields:
        assert len(re.findall(rf"^  {flag_of(name, config)}[ ,]", text, re.MULTILINE)) == 1, name
