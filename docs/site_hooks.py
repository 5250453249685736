"""Hooks of the documentation site: what lies outside of docs/ and is linked from there."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINK = re.compile(
    r"\[([^\]]*)\]\((?:\.\./)+((?:examples|benchmarks|tests|src)/[^)#]*|[A-Z]+\.md)\)"
)
"""A link to a file of the repository that is no page."""

DECISIONS = "decisions/"


def on_config(config: Any) -> Any:
    """List the decision records in the navigation, by their titles."""
    pages = sorted((ROOT / "docs" / DECISIONS).glob("*.md"))
    for item in config.nav:
        if item.get("Decisions") == DECISIONS:
            item["Decisions"] = [f"{DECISIONS}{page.name}" for page in pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the page on security, which lies beside the README."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "security.md", abs_src_path=str(ROOT / "SECURITY.md")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show links to files of the repository as their paths: the site does not hold them."""
    return LINK.sub(lambda match: f"{match[1]} (`{match[2]}`)", markdown)
