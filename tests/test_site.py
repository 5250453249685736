"""The documentation site: built as 'make docs' builds it, with every public name on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import attention_transfer as at

ROOT = Path(__file__).parent.parent


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "&gt;&gt;&gt;" in page  # examples are shown as code
    assert ":class:" not in page
    security = (tmp_path / "site" / "security" / "index.html").read_text(encoding="utf-8")
    assert "What is not trusted" in security


def test_the_reference_has_every_public_name_once() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = [name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert sorted(named) == sorted(at.__all__)


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("decisions/")} <= set(
        re.findall(r"[\w/-]+\.md", nav)
    )
