"""Rows 24 and 32: the run folder of someone else runs no code, and builds no huge network."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError, UntrustedError
from attention_transfer.experiments.demo import packaged_teacher
from attention_transfer.models import ModelCard, build

MODULE = """
from pathlib import Path
Path("{sentinel}").touch()

def network(num_classes=3):
    from attention_transfer.models import build
    return build("wrn-10-1", num_classes)

def data():
    import numpy as np
    images = [(np.full((16, 16, 3), 60 * (n % 3), dtype=np.uint8), n % 3) for n in range(60)]
    return {{"train": images, "test": images}}
"""


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is made when the module foreign_code is imported, which could be."""
    path = tmp_path / "sentinel"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "foreign_code.py").write_text(MODULE.format(sentinel=path))
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("foreign_code", None)
    return path


def run_folder(folder: Path, **card: Any) -> Path:
    """Write a finished run's network, whose card may say something else."""
    folder.mkdir()
    network = build("wrn-10-1", 3)
    save_file(network.state_dict(), folder / "model.safetensors")
    names = ("0", "1", "2")
    ModelCard("wrn-10-1", names, (3, 16, 16), (0.5,) * 3, (0.2,) * 3, "tiny").write(
        folder / "model.json"
    )
    values = json.loads((folder / "model.json").read_text()) | card
    (folder / "model.json").write_text(json.dumps(values))
    return folder


def begun_folder(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    values = {"student": "wrn-10-1", "data": "cluttered-digits", **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


NETWORKS = ["foreign_code:network", "foreign_code:network@random", "foreign_code:data"]
COMMANDS = {
    "evaluate": "evaluate run",
    "teacher": "distill --student wrn-10-1 --teacher run",
    "one of several teachers": "distill --student wrn-10-1 --teacher wrn-10-1@random,run",
    "student": "train --model run",
    "points": "points run",
    "pair": "points wrn-10-1 --pair run",
    "maps": "maps run --images image.png",
    "cache": "cache build a-cache --teacher run",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_card_imports_nothing(
    command: str, sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(Path("run"), name="foreign_code:network")
    Image.new("RGB", (16, 16)).save("image.png")
    before = sorted(Path().rglob("*"))
    assert main(shlex.split(COMMANDS[command])) == 2
    error = capsys.readouterr().err
    assert error.startswith("attention-transfer: run/model.json names foreign_code:network, for")
    allowed = f"attention-transfer {COMMANDS[command]} --trust foreign_code:network"
    assert error.endswith(f"if you trust that code, allow it: {allowed}\n")
    assert not sentinel.exists()
    assert sorted(Path().rglob("*")) == before


def test_the_data_of_a_card_are_not_imported(
    sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(Path("run"), data="foreign_code:data")
    assert main(["evaluate", "run"]) == 2
    error = capsys.readouterr().err
    assert "model.json names foreign_code:data" in error
    assert not sentinel.exists()
    assert main(shlex.split(error.partition("allow it: attention-transfer ")[2])) == 0
    assert sentinel.exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("student", "foreign_code:network"),
        ("student", "foreign_code:network@random"),
        ("teacher", "wrn-10-1@random, foreign_code:network"),
        ("data", "foreign_code:data"),
        ("data", "timm:create_model"),
        ("terms", ["foreign_code:network(num_classes=3)"]),
        ("terms", ["timm:create_model('resnet18')"]),
        ("student", "timm:local-dir:/tmp/anything"),
        ("student", "timm:hf-hub:someone/network"),
    ],
)
@pytest.mark.parametrize("how", ["resume", "config"])
def test_a_configuration_imports_nothing(
    how: str, setting: str, value: Any, sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun_folder(Path("run"), **{setting: value})
    name = (value if isinstance(value, str) else value[0]).split(", ")[-1]
    name = name.partition("@")[0].partition("(")[0]
    arguments = ["resume", "run"] if how == "resume" else ["train", "--config", "run/config.yaml"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"run/config.yaml names {name}, for which {name.partition(':')[0]} would be" in error
    assert error.endswith(f"attention-transfer {' '.join(arguments)} --trust {name}\n")
    assert not sentinel.exists()


def test_python_needs_the_users_word_too(sentinel: Path) -> None:
    run_folder(Path("run"), name="foreign_code:network")
    begun_folder(Path("begun"), student="foreign_code:network", data="foreign_code:data")
    refused: list[Callable[[], object]] = [
        lambda: at.models.load("run", None, trained=True),
        lambda: at.models.load_run("run"),
        lambda: at.Run(Path("run")).load(),
        lambda: at.show("run", torch.zeros(1, 3, 16, 16)),
        lambda: at.train("run"),
        lambda: at.distill(teacher="run", student="wrn-10-1"),
        lambda: at.resume("begun"),
        lambda: at.resume("begun", trust=["foreign_code:network"]),  # and not the data
    ]
    for call in refused:
        with pytest.raises(UntrustedError, match=r"in Python trust=\('foreign_code:"):
            call()
    assert not sentinel.exists()
    own = ("foreign_code:network",)
    assert at.models.load_run("run", trust=own).name == own[0]
    assert at.Run(Path("run")).load(trust=own).name == own[0]
    assert len(at.show("run", torch.zeros(1, 3, 16, 16), trust=own).axes) > 0
    assert sentinel.exists()


def test_trust_ends_with_the_call_and_covers_one_name(sentinel: Path) -> None:
    run_folder(Path("run"), name="foreign_code:network")
    with pytest.raises(UntrustedError):
        at.models.load_run("run", trust=["foreign_code:data", "foreign_code"])
    at.models.load_run("run", trust=["foreign_code:network"])
    with pytest.raises(UntrustedError):
        at.models.load_run("run")


def test_a_run_of_ones_own_resumes_with_the_command_that_is_told(
    sentinel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"student": "foreign_code:network", "data": "foreign_code:data"}
    settings = {"epochs": 1, "batch_size": 16, "lr": 0.05, "probes": 0, "report": False}
    begun_folder(Path("run"), out="run", precision="fp32", **names, **settings)
    assert main(["resume", "run"]) == 2
    told = capsys.readouterr().err.partition("allow it: attention-transfer ")[2]
    assert main(shlex.split(told)) == 0
    assert at.Run(Path("run")).is_finished


def test_what_the_user_types_is_allowed(sentinel: Path) -> None:
    assert main(["points", "foreign_code:network"]) == 0
    assert sentinel.exists()


def test_the_report_builds_nothing(sentinel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    folder.mkdir()
    for file in packaged_teacher().iterdir():
        text = file.read_bytes().replace(b'"wrn-16-2"', b'"foreign_code:network"')
        text = text.replace(b"student: wrn-16-2", b"student: foreign_code:network")
        (folder / file.name).write_bytes(text)
    assert main(["report", str(folder)]) == 0
    assert "foreign_code:network" in (folder / "report.html").read_text()
    assert not sentinel.exists()


@pytest.mark.parametrize("module", ["typing", "random", "json", "yaml", "torch", "numpy"])
def test_nothing_in_the_current_folder_is_imported(module: str, tmp_path: Path) -> None:
    """Neither with python -m, nor by processes that it starts."""
    (tmp_path / f"{module}.py").write_text("raise SystemExit('imported from here')")
    code = (
        "import multiprocessing, sys; from attention_transfer.__main__ import main; "
        "main(['--version']); process = multiprocessing.get_context('spawn').Process(target=print,"
        " args=('child',)); process.start(); process.join(); sys.exit(process.exitcode)"
    )
    points = ["-m", "attention_transfer", "points", "wrn-10-1"]
    for arguments in (points, ["-P", "-c", code]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "imported from here" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn-9994-99", "about 1.6e\\+12 weights, expected at most 2e\\+09"),
        ("wrn-10-999", "weights, expected at most"),
        ("wrn-22-30", "model.safetensors does not fit WideResNet"),
        ("timm:vit_giant_patch14_224", "model.safetensors does not fit VisionTransformer"),
    ],
)
def test_a_card_builds_no_huge_network(name: str, message: str, tmp_path: Path) -> None:
    """What does not fit the file of weights takes no memory."""
    run_folder(tmp_path / "run", name=name)
    code = (
        "import resource, sys, attention_transfer as at; at.models.build('timm:resnet18', None)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: at.models.load_run('run')\n"
        "except at.InputError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *error, megabytes = done.stdout.splitlines()
    assert re.search(message, error[0])
    assert int(megabytes) < 200


def test_a_card_has_images_of_a_size_that_fits_the_memory(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", input_size=[3, 10**6, 10**6])
    with pytest.raises(InputError, match=r"input_size\.1 should be less than or equal to 9999"):
        at.models.load_run(folder)


def hub_folder(folder: Path) -> str:
    """Write what timm reads as a network of a hub."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}})
    )
    return f"timm:local-dir:{folder}"


def test_a_hubs_network_is_built_where_the_user_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = hub_folder(tmp_path / "hub")
    save_file(build("timm:resnet18", 3).state_dict(), tmp_path / "hub" / "model.safetensors")
    loaded = at.models.load(name, None, trained=True)
    assert loaded.network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert main(["points", name]) == 0
    capsys.readouterr()
    folder = run_folder(tmp_path / "run", name=name)
    with pytest.raises(UntrustedError, match=r"model\.json names timm:local-dir:"):
        at.models.load_run(folder)


def test_a_hubs_pickle_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "sentinel"), "w")

    name = hub_folder(tmp_path / "hub")
    torch.save(Malice(), tmp_path / "hub" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"could not be built: .*weights_only=True blocked"):
        at.models.load(name, None, trained=True)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    "name", ["timm:local-dir:", "timm:local-dir:/nowhere", "timm:other:x", "timm:hf-hub:"]
)
def test_a_hub_that_is_not_there_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["points", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"attention-transfer: {name} could not be built: ")
    assert error.count("\n") == 1
