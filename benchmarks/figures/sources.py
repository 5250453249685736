"""The files that figures come from, and their values by path."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "FigureError", "Source", "Sources"]

ROOT = Path(__file__).parents[2]
"""The repository."""

MEASURED = "benchmarks/results"
STUDIES = "docs/results"
PAPER = "src/attention_transfer/experiments/studies"
"""Studies of the paper's tables, which hold the paper's own figures."""


class FigureError(Exception):
    """A figure, table, file or key that does not exist."""


class Source:
    """A file with results, read when a value is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def contents(self) -> Any:
        """The contents of the file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FigureError(
                f"{self.path} does not exist: run what measures it, or take its figures out"
            ) from None
        try:
            return yaml.safe_load(text) if self.path.suffix == ".yaml" else json.loads(text)
        except (ValueError, yaml.YAMLError) as error:
            raise FigureError(f"{self.path} cannot be read: {error}") from None

    def all(self, path: str) -> list[Any]:
        """Return the values at a path of keys with ``/`` between them, where ``*`` is any key.

        Args:
            path: such as ``pairs/*/ratios/cached_over_live/median``; numbers index lists.
        """
        values = [self.contents]
        for number, part in enumerate(path.split("/"), start=1):
            found = [inner for value in values for inner in _children(value, part)]
            if not found:
                here = "/".join(path.split("/")[:number])
                keys = ", ".join(repr(key) for value in values for key, _ in _items(value))
                raise FigureError(f"{self.path} has no {here!r}; it has {keys or 'no keys'} there")
            values = found
        return values

    def one(self, path: str) -> Any:
        """Return the value at a path, which may match one place only."""
        values = self.all(path)
        if len(values) > 1:
            raise FigureError(f"{self.path}: {path!r} matches {len(values)} values, expected one")
        return values[0]


class Sources:
    """The files of a repository that figures come from."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._read: dict[Path, Source] = {}

    def measured(self, name: str) -> Source:
        """Return a benchmark's results.

        Args:
            name: of the file, without ``.json``.
        """
        return self._source(Path(MEASURED, f"{name}.json"))

    def study(self, name: str) -> Source:
        """Return the results of a study that ``attention-transfer study`` has written."""
        return self._source(Path(STUDIES, name, "study.json"))

    def paper(self, name: str) -> Source:
        """Return the study of one of the paper's tables, with the paper's figures."""
        return self._source(Path(PAPER, f"{name}.yaml"))

    def _source(self, path: Path) -> Source:
        return self._read.setdefault(path, Source(self.root / path))


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list):
        yield from ((str(index), inner) for index, inner in enumerate(value))


def _children(value: Any, part: str) -> list[Any]:
    return [inner for key, inner in _items(value) if fnmatchcase(key, part)]
