"""Output of the commands: tables for people, one JSON document for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_transfer.terminal import escape_control_characters, print_line

__all__ = ["console", "print_json", "print_notices", "print_table"]


def console(as_json: bool) -> Console:
    """Return the console for progress and tables: stderr if stdout is for JSON, else stdout."""
    return Console(stderr=as_json)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2)
    print()


def print_notices(notices: Iterable[str]) -> None:
    """Print lines on stderr, as the program's own."""
    for notice in notices:
        print(f"attention-transfer: {escape_control_characters(notice)}", file=sys.stderr)


def print_table(
    where: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """Print a table; every column except the first is aligned to the right."""
    if title is not None:
        print_line(where, title)
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        table.add_column(Text(escape_control_characters(column)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_control_characters(cell)) for cell in row))
    if not where.is_terminal:
        where = Console(file=where.file, width=10_000)  # no line breaks for programs that read it
    where.print(table)
