"""Row 28: output that nobody reads, or that finds no room, harms no run and is no wall of text."""

import shlex
import subprocess
from pathlib import Path

import pytest

import attention_transfer as at
from reliability.killing import TINY, command_line, environment

TRAIN = ["train", "--model=wrn-10-1", "--out=run", *TINY]


def shell(folder: Path, arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, with its streams redirected; the shell's code is the command's."""
    command = shlex.join(command_line(folder, *arguments))
    return subprocess.run(
        ["bash", "-c", f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["points", "wrn-10-1"], ["points", "wrn-10-1", "--json"]])
def test_a_full_stdout_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = shell(tmp_path, arguments, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "attention-transfer: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["points", "nothing"], 2), (["points", "wrn-10-1"], 1)]
)
def test_both_full_leave_the_exit_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert shell(tmp_path, arguments, ">/dev/full 2>/dev/full").returncode == code


def test_a_full_stderr_leaves_the_exit_code(tmp_path: Path) -> None:
    assert shell(tmp_path, ["points", "nothing"], "2>/dev/full").returncode == 2


def test_a_reader_that_has_enough_is_no_error_to_tell(tmp_path: Path) -> None:
    done = shell(tmp_path, ["points", "wrn-40-2", "--json"], "| head -1")
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize(
    ("redirection", "code", "lines"),
    [
        (">/dev/full", 1, 1),
        ("| head -1", 1, 0),
        (">&-", 0, 0),
        (">&- 2>&-", 0, 0),
        (">/dev/full 2>/dev/full", 1, 0),
        (">&- <&-", 0, 0),
    ],
)
def test_a_run_goes_on_to_its_end(redirection: str, code: int, lines: int, tmp_path: Path) -> None:
    done = shell(tmp_path, TRAIN, redirection)
    assert done.stderr.count("\n") == lines, done.stderr
    assert done.returncode == code
    run = at.Run(tmp_path / "run")
    assert [row.epoch for row in run.metrics] == [1, 2, 3]
    assert run.load().card is not None  # with the checksum of its weights
