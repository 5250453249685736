"""The command: rewrites the documents, or says what would change."""

import argparse
import difflib
import sys
from pathlib import Path

from figures.settings import SETTINGS
from figures.sources import ROOT, FigureError, Sources
from figures.tables import TABLES
from figures.text import fill, unmarked
from figures.values import FIGURES

__all__ = ["documents", "filled", "main"]


def documents(root: Path = ROOT) -> list[Path]:
    """Return the documents whose figures come from files."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(document: Path, root: Path = ROOT) -> str:
    """Return a document with its figures from the files.

    Raises:
        FigureError: a marker, file or key is unknown, or a measurement has no marker.
    """
    name = document.relative_to(root).as_posix()
    text = document.read_text(encoding="utf-8")
    try:
        text = fill(text, Sources(root), FIGURES, TABLES)
        lacking = unmarked(text, SETTINGS.get(name, ()))
        if lacking:
            raise FigureError(
                f"{'; '.join(lacking)}: no marker. Add '<!-- figure: NAME -->' after a figure of a "
                "file, '<!-- no file -->' after one without, or the phrase to settings.py"
            )
    except FigureError as error:
        raise FigureError(f"{name}: {error}") from None
    return text


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite the documents; return 1 if a check found changes, 2 for an error."""
    parser = argparse.ArgumentParser(prog="figures", description="Fills the documents' figures.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; show what would change"
    )
    check = parser.parse_args(arguments).check
    try:
        texts = {document: filled(document, root) for document in documents(root)}
    except FigureError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    changed = False
    for document, text in texts.items():
        old, name = document.read_text(encoding="utf-8"), document.relative_to(root).as_posix()
        if text == old:
            continue
        changed = True
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, name, n=0)
        )
        if not check:
            document.write_text(text, encoding="utf-8")
    return int(changed and check)


if __name__ == "__main__":
    sys.exit(main())
