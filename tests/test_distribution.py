"""The wheel and the source archive: complete, of one version, and of use without the checkout."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import attention_transfer as at

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(listed.stdout.splitlines())


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(archive.read(metadata).decode())
    package = {f"src/{name}" for name in names if ".dist-info/" not in name}
    assert package == tracked("src")
    assert described["Version"] == at.__version__
    assert described["Requires-Python"] == ">=3.11"
    assert described["License-Expression"] == "Apache-2.0"
    assert wheel.stat().st_size < 5_000_000


def test_the_source_archive_has_the_tests_and_documents(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    expected = tracked("src", "tests", "docs", "examples", "benchmarks", "scripts")
    assert names >= expected | {"README.md", "CHANGELOG.md", "LICENSE", "Makefile"}


def test_the_installed_wheel_works_without_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
    subprocess.run([*install, str(tmp_path / "site"), str(wheel)], check=True)
    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = (
        "import json, numpy, attention_transfer as at; from pathlib import Path;"
        "from attention_transfer.experiments.packaged_teacher import packaged_teacher;"
        "scenes = at.data.load_data('cluttered-digits').test;"
        "told = at.load(packaged_teacher()).predict(list(scenes.images[:40].numpy()));"
        "right = [one.label == str(int(of)) for one, of in zip(told, scenes.labels)];"
        "print(json.dumps([at.__file__, sum(right)]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=alone,
        check=True,
        capture_output=True,
        text=True,
    )
    home, right = json.loads(told.stdout)
    assert Path(home).is_relative_to(tmp_path)
    assert right >= 36
    for command in (["study", "list"], ["doctor"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "attention_transfer", *command],
            cwd=tmp_path,
            env=alone,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
