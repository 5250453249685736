"""The tutorial as a newcomer types it: every line, in an empty folder, with fewer epochs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def run(folder: Path, command: str) -> str:
    """Run a command line as in a shell with this environment's programs first on its path."""
    programs = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_every_line_of_the_tutorial_works(tmp_path: Path) -> None:
    (code,) = blocks("python")
    name = re.match(r"# (\w+\.py)\n", code)
    assert name is not None
    (tmp_path / name[1]).write_text(code, encoding="utf-8")
    run(tmp_path, f"python {name[1]}")
    outputs = {}
    for block in blocks(""):
        if block.startswith("import "):
            (tmp_path / "use.py").write_text(block, encoding="utf-8")
            outputs["in Python"] = run(tmp_path, "python use.py")
            continue
        for line in block.splitlines():
            if not line.startswith("pip "):
                outputs[line] = run(tmp_path, line.replace("--epochs 12", "--epochs 3"))
    text = "\n".join(outputs.values())
    assert "the student alone" in text
    assert (tmp_path / "maps" / "maps.png").is_file()
    assert (tmp_path / "runs" / "student" / "alone" / "record.json").is_file()
    threes = list((tmp_path / "photos" / "digit-3").iterdir())
    assert len(outputs["in Python"].splitlines()) == len(threes)
