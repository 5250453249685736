"""Documents are right: Python and commands in them run, and so do examples in docstrings."""

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import attention_transfer as at
from attention_transfer.cli import COMMANDS
from attention_transfer.cli.arguments import Parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [
    found.name
    for found in pkgutil.walk_packages(at.__path__, "attention_transfer.")
    if not found.name.endswith("__main__")
]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_has_python_to_run() -> None:
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_runs(document: Path) -> None:
    names: dict[str, object] = {}
    for number, code in enumerate(blocks(document, "python")):
        exec(compile(code, f"{document.name} block {number}", "exec"), names)
    assert "error" not in names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist_with_their_flags(document: Path) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^attention-transfer .*$", text, re.MULTILINE):
        command, *arguments = shlex.split(line.split("  #")[0])[1:]
        assert command in COMMANDS, line
        parser = Parser(command, "", ())
        COMMANDS[command].add_arguments(parser)
        parser.parse(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_exist_with_their_flags(command: str) -> None:
    for example in COMMANDS[command].EXAMPLES:
        name, *arguments = shlex.split(example)
        assert name == command
        parser = Parser(command, "", ())
        COMMANDS[command].add_arguments(parser)
        parser.parse(arguments)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets_in_the_readme_exist(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_contributing_lists_the_layers_that_import_linter_checks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [re.findall(r"attention_transfer\.(\w+)", layer) for layer in layers]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == checked


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    names = {"at": at, "np": np, "torch": torch, "nn": torch.nn}
    result = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert result.failed == 0


def test_the_formulas_have_examples() -> None:
    for module in ("maps", "losses", "measures"):
        home = importlib.import_module(f"attention_transfer.functional.{module}")
        for public in home.__all__:
            if callable(value := getattr(home, public)) and hasattr(value, "__code__"):
                assert ">>>" in (value.__doc__ or ""), public


def test_the_tests_that_security_names_exist() -> None:
    root = Path(__file__).parent.parent
    names = re.findall(r"`(tests/\S+\.py)(?:::(\w+))?`", (root / "SECURITY.md").read_text())
    assert len(names) > 15
    for file, test in names:
        assert f"def {test}" in (root / file).read_text(), f"{file}::{test}"


def test_the_page_on_faults_names_the_tests_that_there_are() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    tests = ROOT / "tests"
    rows = {path.name[5:11]: path for path in (tests / "reliability").glob("test_row_*.py")}
    assert set(re.findall(r"row_\d\d", text)) == set(rows)
    files = set(re.findall(r"test_\w+\.py", text))
    assert files
    assert not [name for name in files if not (tests / name).exists()]
    named = [int(n) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for n in row.split(",")]
    assert sorted(named) == list(range(1, 40))


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == at.__version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Zagoruyko", "Komodakis"]
    assert paper["title"].startswith("Paying More Attention to Attention")


def test_the_messages_of_the_page_on_troubleshooting_are_those_of_the_code() -> None:
    """Capitals and dots stand for what differs; the rest of a message is in one string of it."""
    texts = []
    for path in Path(at.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts.append("".join(str(getattr(part, "value", "")) for part in parts))
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        fixed = [part.strip() for part in re.split(r"…|\b[A-Z]+\b:?", message)]
        for part in fixed:
            if len(part) > 3:
                assert any(part.strip(" ,;:") in text for text in texts), (message, part)


def test_the_workflow_calls_make_targets_and_covers_the_versions_that_are_promised() -> None:
    text = (ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, job in jobs.items():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert [command.split()[:2] for command in commands] == [["make", name]]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"


def test_the_portable_tests_exist() -> None:
    listed = subprocess.run(
        ["make", "--dry-run", "test-portable"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = re.findall(r"tests/test_\w+\.py", listed.stdout)
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).exists()] == []
