"""A study of tiny runs on a folder of tiny images, run in this process or in one of its own."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from attention_transfer import cli

STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "A tiny study",
    "settings": {
        "epochs": 1,
        "batch_size": 8,
        "image_size": 16,
        "precision": "fp32",
        "workers": 0,
        "probes": 4,
        "trust_teacher": True,
        "lr": 0.05,
    },
    "seeds": "0-1",
    "data": ["folder:images"],
    "teachers": {"big": {"student": "wrn-10-2", "settings": {"epochs": 2}}},
    "pairs": {"small from big": {"student": "wrn-10-1", "teacher": "big"}},
    "arms": {"alone": {"teacher": "none"}, "AT+KD": {"kd_alpha": 0.9}},
    "paper": {"small from big": {"AT+KD": "7.51 M"}},
}


def write_images(folder: Path) -> None:
    """Write images of two classes, a bright top or a bright bottom."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label, name in enumerate(("top", "bottom")):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[label * 8 : label * 8 + 8] += 150
                Image.fromarray(pixels).save(place / f"{number}.png")


class Printed(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def write_study(folder: Path, value: dict[str, Any]) -> None:
    """Write a study's file, and the images if they are not there."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    if not (folder / "images").exists():
        write_images(folder)


def run_command(folder: Path, *arguments: str, code: int = 0) -> Printed:
    """Run a command in a folder, in this process; it must end with an exit code."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        found = cli.main(arguments)
    assert found == code, stderr.getvalue() + stdout.getvalue()
    return Printed(stdout.getvalue(), stderr.getvalue())


def run_study(
    folder: Path, *arguments: str, value: dict[str, Any] = STUDY, code: int = 0
) -> Printed:
    """Run a study in the folder ``out`` of a folder, in this process."""
    write_study(folder, value)
    flags = ["--out", "out", "--no-measure"]
    return run_command(folder, "study", "tiny.yaml", *flags, *arguments, code=code)


def command(*arguments: str) -> list[str]:
    """Return a command line for a process of its own."""
    return [sys.executable, "-m", "attention_transfer", *arguments]


def start_study(
    folder: Path, *arguments: str, value: dict[str, Any] = STUDY, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a study as :func:`run_study` does, in a process of its own."""
    write_study(folder, value)
    done = subprocess.run(
        command("study", "tiny.yaml", "--out", "out", "--no-measure", *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done
