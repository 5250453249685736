"""Documents with markers: fills figures and tables in, and finds numbers that lack a marker."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from figures.sources import FigureError, Sources

__all__ = ["NUMBER", "Figure", "Table", "fill", "unmarked"]

NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?"

CODE = re.compile(r"^```.*?^```$|^    [^\n]*$|`[^`]+`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
NO_FILE = "no file"
TABLE = re.compile(r"\n+((?:\|[^\n]*(?:\n|\Z))*)")
TABLE_WITH_MARKER = re.compile(r"^(<!--[^\n]*-->\n+)?((?:^\|[^\n]*\n?)+)", re.MULTILINE)

UNIT = (
    r"(?: ?%| ms\b| s\b| seconds\b| minutes\b| [GMk]B\b| points\b| times\b| G?FLOP\b"
    r"| images a second\b| plain steps\b)"
)
MEASURED = re.compile(
    rf"(?<![\w.,#/-]){NUMBER}(?:(?:, | to | and | ± ){NUMBER})*(?![\d.,]*\d|[\w-])"
    rf"(?:<!--.*?-->)?{UNIT}?"
)


@dataclass(frozen=True)
class Figure:
    """A figure in a sentence."""

    write: Callable[[Sources], str]
    """Returns the text, from the files."""
    shape: str = NUMBER
    """Regular expression of every text that it may replace."""


Known = TypeVar("Known")

Table = Callable[[Sources, str], list[str]]
"""Returns the lines of a table; the text is what follows the table's name in the marker."""


def fill(
    text: str, sources: Sources, figures: Mapping[str, Figure], tables: Mapping[str, Table]
) -> str:
    """Return a document with every figure and table that it names written from the files.

    Args:
        text: the document.
        sources: the files.
        figures: those that a document may name.
        tables: those that a document may name.

    Raises:
        FigureError: a marker, file or key is unknown, or no number stands before a marker.
    """
    code = [match.span() for match in CODE.finditer(text)]
    for comment in reversed([*COMMENT.finditer(text)]):
        if any(start <= comment.start() < end for start, end in code):
            continue
        kind, _, name = comment[1].strip().partition(": ")
        try:
            if kind == "figure":
                text = _with_figure(text, comment, sources, _known(figures, name, "figure"))
            elif kind == "table":
                name, _, argument = name.partition(" ")
                lines = _known(tables, name, "table")(sources, argument)
                text = _with_table(text, comment, lines)
            elif comment[1].strip() != NO_FILE:
                raise FigureError(
                    f"unknown marker {comment[0]!r}, expected 'figure: NAME', 'table: NAME' "
                    f"or {NO_FILE!r}"
                )
        except FigureError as error:
            raise FigureError(f"line {_line(text, comment.start())}: {error}") from None
    return text


def unmarked(text: str, settings: Sequence[str]) -> list[str]:
    """Return the numbers that look measured and have no marker, each with its line.

    A number looks measured if it has a decimal point or a unit. Numbers in code are left out.

    Args:
        text: the document.
        settings: phrases of the document whose numbers are no measurements; of a table, its head.

    Raises:
        FigureError: a phrase does not occur.
    """
    patterns = {phrase: _over_lines(phrase) for phrase in settings}
    for phrase, pattern in patterns.items():
        if pattern.search(text) is None:
            raise FigureError(f"settings.py lists {phrase!r}, which the document does not have")
    heads = tuple(phrase for phrase in settings if phrase.startswith("|"))

    def without_known(table: re.Match[str]) -> str:
        known = table[1] or (heads and table[2].startswith(heads))
        return _blank(table[0]) if known else table[0]

    text = TABLE_WITH_MARKER.sub(without_known, text)
    for pattern in patterns.values():
        text = pattern.sub(lambda found: _blank(found[0]), text)
    text = CODE.sub(lambda code: _blank(code[0]), text)
    return [
        f"line {_line(text, number.start())}: {number[0]}"
        for number in MEASURED.finditer(text)
        if "<!--" not in number[0] and re.search(rf"\d\.\d|{UNIT}", number[0])
    ]


def _over_lines(phrase: str) -> re.Pattern[str]:
    """Return what finds a phrase wherever its lines break."""
    return re.compile(r"\s+".join(map(re.escape, phrase.split())))


def _with_figure(text: str, comment: re.Match[str], sources: Sources, figure: Figure) -> str:
    line = text.rfind("\n", 0, comment.start()) + 1
    old = re.search(rf"(?<![\d.,+-])(?:{figure.shape})\Z", text[line : comment.start()])
    if old is None:
        raise FigureError(f"before {comment[0]} there is no number such as {figure.write(sources)}")
    return text[: line + old.start()] + figure.write(sources) + text[comment.start() :]


def _with_table(text: str, comment: re.Match[str], lines: Sequence[str]) -> str:
    before = text[: comment.end()]
    old = TABLE.match(text, comment.end())
    if old is None or not (before.endswith(f"\n{comment[0]}") or before == comment[0]):
        raise FigureError(f"{comment[0]} must be a line of its own")
    after = text[old.end() :]
    gap = "" if not after or after.startswith("\n") else "\n"
    return f"{before}\n\n" + "".join(f"{line}\n" for line in lines) + gap + after


def _known(named: Mapping[str, Known], name: str, kind: str) -> Known:
    if name not in named:
        raise FigureError(f"unknown {kind} {name!r}, expected one of {', '.join(sorted(named))}")
    return named[name]


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", "_", text)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
