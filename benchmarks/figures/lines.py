"""A table's lines in Markdown."""

from collections.abc import Iterable, Sequence

__all__ = ["lines"]


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    >>> lines(["", "ms"], [["a step", "51"]])
    ['| | ms |', '|---|---|', '| a step | 51 |']
    """
    written = [" ".join(f"| {cell}".rstrip() for cell in row) + " |" for row in (head, *rows)]
    return [written[0], "|" + "---|" * len(head), *written[1:]]
