"""The rows and column names of a CSV file, as spreadsheets and programs write it."""

import codecs
import csv
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from attention_transfer.data.classes import abridged
from attention_transfer.data.file_sets import SUFFIXES
from attention_transfer.errors import InputError
from attention_transfer.files import read_bytes

__all__ = ["Table", "read_table"]

LARGEST_TABLE = 2**30
"""Bytes of the largest table: some ten million rows."""

_DELIMITERS = ",\t;"


class Table(NamedTuple):
    """The column names of a table, its rows of as many values, and notices for the user."""

    names: list[str]
    rows: list[list[str]]
    notices: list[str]

    def column(self, name: str) -> list[str]:
        """Return the values of a column, without spaces around them."""
        index = self.names.index(name)
        return [row[index].strip() for row in self.rows]


def read_table(file: Path) -> Table:
    """Read a CSV file whose first line names its columns.

    Values are separated by commas, semicolons or tabs, after which spaces are dropped. The text is
    UTF-8, or UTF-16 with a byte order mark. Empty lines are skipped, and so are comments: lines
    that begin with ``#`` and name no file.

    Raises:
        InputError: it is no such file, or two columns have one name.
    """
    lines = _text(file).splitlines(keepends=True)
    header = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    delimiter = max(_DELIMITERS, key=header.count)
    kept = [
        (number, line)
        for number, line in enumerate(lines, start=1)
        if not _is_comment(line, delimiter, file.parent)
    ]
    reader = csv.reader((line for _, line in kept), delimiter=delimiter, skipinitialspace=True)
    try:
        table = [(kept[reader.line_num - 1][0], row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file ({error}); save it again as CSV") from None
    if len(table) < 2:
        raise InputError(f"{file} has {len(table)} lines, expected names of columns, and images")
    names = [name.strip() for name in table[0][1]]
    _check_names(file, names)
    for number, row in table[1:]:
        if len(row) != len(names):
            raise InputError(
                f"row {number} of {file} has {len(row)} values, expected {len(names)} "
                f"({abridged(names)}); put values with a {delimiter!r} in quotes"
            )
    comments = len(lines) - len(kept)
    notices = [f"{file.name}: {comments} lines that begin with # are comments"] if comments else []
    return Table(names, [row for _, row in table[1:]], notices)


def _text(file: Path) -> str:
    if file.is_dir() or not file.exists():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{file} {kind}; expected a CSV file whose first line names its columns")
    try:
        content = read_bytes(file, LARGEST_TABLE)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    if "\0" in text:
        raise InputError(f"{file} is not UTF-8 text, as it has zero bytes; save it as CSV in UTF-8")
    return text


def _is_comment(line: str, delimiter: str, folder: Path) -> bool:
    """Return whether a line begins with ``#``, and none of its values is a file."""
    if not line.startswith("#"):
        return False
    values = [value.strip().strip('"') for value in line.split(delimiter)]
    return not any(value and os.path.isfile(folder / value) for value in values)


def _check_names(file: Path, names: list[str]) -> None:
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        raise InputError(
            f"the first line of {file} is an image ({abridged(names)}), expected the names of the "
            "columns; put a line such as filename,label before it"
        )
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise InputError(
            f"{file} has several columns with the name {abridged(twice)}; give each a name of its "
            "own"
        )
