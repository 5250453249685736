"""The studies that come with the package, and those in a user's files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from attention_transfer.config.studies import (
    STEPS,
    PairConfig,
    PaperFigure,
    SelectionConfig,
    StudyConfig,
    TeacherConfig,
    checked_settings,
)
from attention_transfer.config.yaml_files import read_nested_file, read_text
from attention_transfer.errors import InputError, first_problems, nearest
from attention_transfer.trust import check_settings

__all__ = [
    "changed_study",
    "check_recipe",
    "find_study",
    "named_studies",
    "study_of",
    "study_path",
    "study_text",
    "titles",
]

STAND_INS = {
    "teachers": TeacherConfig(student="any"),
    "pairs": PairConfig(student="any", teacher="any:any"),
}
"""Stand for parts with faults while the rest of a study is checked."""

SUFFIXES = (".yaml", ".yml")


def named_studies() -> dict[str, Path]:
    """Return the files of the studies that come with the package, by name."""
    folder = Path(str(files("attention_transfer.experiments") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def titles() -> dict[str, str]:
    """Return the title of each study that comes with the package, by name."""
    return {name: read_nested_file(path)["title"] for name, path in named_studies().items()}


def study_path(name: str) -> Path:
    """Return the file of a study: one that comes with the package, or the user's own.

    Raises:
        InputError: there is neither.
    """
    named = named_studies()
    if name in named:
        return named[name]
    path = Path(os.path.expanduser(name))
    if path.suffix not in SUFFIXES and not os.path.isfile(path):
        raise InputError(
            f"unknown study {name!r}; {nearest(name, named)}, or a file such as my.yaml"
        )
    return path


def find_study(name: str) -> StudyConfig:
    """Read and check a study, by its name or its file.

    Raises:
        InputError: there is none; everything that is wrong with it, in one line.
        UntrustedError: a user's file names code that is not trusted.
    """
    path = study_path(name)
    study = study_of(read_nested_file(path), str(path))
    if name not in named_studies():
        for settings in _all_settings(study):
            check_settings(path, settings)
    return study


def study_text(name: str) -> str:
    """Return the file of a study, by its name or path.

    Raises:
        InputError: there is none, or it is no text.
    """
    return read_text(study_path(name))


def study_of(values: Mapping[str, Any], source: str) -> StudyConfig:
    """Return the study that plain values describe.

    Args:
        values: as a file has them.
        source: the file, for the message.

    Raises:
        InputError: everything that is wrong, in one line.
    """
    reading = _Reading({key.replace("-", "_"): value for key, value in values.items()})
    study = reading.study()
    if reading.faults or study is None:
        raise InputError(f"{source}: " + "; ".join(reading.faults))
    return study


def changed_study(
    study: StudyConfig, data: Sequence[str] | None, changes: Mapping[str, Any]
) -> StudyConfig:
    """Return a study with other data or other settings of its own.

    Args:
        study: the study.
        data: DATA, each with the settings that the study has for it, if any; None: the study's.
        changes: other fields of the study.

    Raises:
        InputError: a value is wrong.
    """
    values = {**dict(study), **changes}
    if data:
        values["data"] = {name: study.data.get(name, {}) for name in data}
        values["pairs"] = _pairs_on(study, data)
        known = {*values["pairs"], *data}
        values["paper"] = {row: part for row, part in study.paper.items() if row in known}
    return StudyConfig.checked(values)


def check_recipe(study: StudyConfig) -> None:
    """Raise an InputError if a recipe has no effect on the length of some of a study's runs.

    The recipe "short" shortens every length; the others set it, and all else overrides them.

    Args:
        study: with its recipe, of the command line.
    """
    if study.recipe == "short":
        return
    parts = {"settings": study.settings}
    for kind in ("data", "variants", "arms"):
        parts |= {f"{kind} {name}": part for name, part in getattr(study, kind).items()}
    parts |= {f"pairs {name}": pair.settings for name, pair in study.pairs.items()}
    for name, teacher in study.teachers.items():
        parts[f"teachers {name}"] = teacher.settings
        parts |= {f"teachers {name} on {data}": teacher.on.get(data, {}) for data in study.data}
    lengths = [
        f"{where} sets {name} {part[name]}"
        for where, part in parts.items()
        for name in ("epochs", STEPS)
        if name in part
    ]
    if lengths:
        raise InputError(
            f"--recipe {study.recipe} would not set all lengths, since the study {study.name} sets "
            f"some by itself: {first_problems(lengths)}; leave --recipe out, give --recipe short "
            "(a tenth of every length), or change a copy: attention-transfer study show "
            f"{study.name}"
        )


def _pairs_on(study: StudyConfig, data: Sequence[str]) -> dict[str, PairConfig]:
    """Return the pairs of a study that are for some of the data; if none is, all of them."""
    fitting = {
        name: pair
        for name, pair in study.pairs.items()
        if pair.data is None or not set(pair.data).isdisjoint(data)
    }
    return {
        name: pair.replace(data=[one for one in pair.data or () if one in data] or None)
        for name, pair in (fitting or study.pairs).items()
    }


class _Reading:
    """Turns the parts of a study into values, and collects what is wrong with all of them."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.faults: list[str] = []
        self.unreadable = False
        """Whether a part is of another type, so that the study cannot be checked as a whole."""

    def study(self) -> StudyConfig | None:
        read: dict[str, Callable[[str, Any], Any]] = {
            "data": checked_settings,
            "variants": checked_settings,
            "arms": checked_settings,
            "teachers": self._teacher,
            "pairs": self._pair,
            "paper": self._figures,
        }
        values = dict(self.values)
        for name, read_one in read.items():
            if name in values:
                values[name] = self._mapping(name, values[name], read_one)
        if "settings" in values:
            values["settings"] = self._part("settings", values["settings"], checked_settings) or {}
        if "select" in values:
            several = values["select"]
            several = several if isinstance(several, list) else [several]
            parts = [self._part("select", one, self._selection) for one in several]
            values["select"] = tuple(part for part in parts if part is not None)
        if isinstance(values.get("compare"), dict):
            values["compare"] = {
                arm: tuple(others) if isinstance(others, list) else (others,)
                for arm, others in values["compare"].items()
            }
        if self.unreadable:
            return None
        try:
            return StudyConfig.checked(values)
        except InputError as error:
            self.faults.append(str(error))
            return None

    def _mapping(self, where: str, values: Any, read: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Read a mapping of names; a list of names stands for names without settings."""
        if isinstance(values, str) and where == "data":
            values = [values]
        if isinstance(values, list) and all(isinstance(name, str) for name in values):
            values = {name: {} for name in values}
        if not isinstance(values, dict):
            self.faults.append(f"{where} must hold 'name: settings' lines, got {values!r}")
            self.unreadable = True
            return {}
        parts = {name: self._part(f"{where} {name}", part, read) for name, part in values.items()}
        # A part with a fault keeps its name, so that names that refer to it are no faults too.
        instead: Any = STAND_INS.get(where, {})
        return {name: instead if part is None else part for name, part in parts.items()}

    def _part(self, where: str, values: Any, read: Callable[[str, Any], Any]) -> Any:
        try:
            return _checked_part(where, values, read)
        except InputError as error:
            text = str(error)
            self.faults.append(text if text.startswith(where) else f"{where}: {text}")
            return None

    @staticmethod
    def _teacher(where: str, values: dict[str, Any]) -> TeacherConfig:
        values = _with_settings(where, values)
        if isinstance(values.get("on"), dict):
            values["on"] = {
                data: _checked_part(f"{where} on {data}", settings, checked_settings)
                for data, settings in values["on"].items()
            }
        return TeacherConfig.checked(values)

    @staticmethod
    def _pair(where: str, values: dict[str, Any]) -> PairConfig:
        return PairConfig.checked(_with_settings(where, values))

    @staticmethod
    def _selection(where: str, values: dict[str, Any]) -> SelectionConfig:
        selection = SelectionConfig.checked(values)
        values_of: dict[str, str] = {}
        for value in selection.values:
            typed = str(checked_settings(where, {selection.setting: value})[selection.setting])
            if typed in values_of:
                raise InputError(
                    f"{where}: {values_of[typed]!r} and {value!r} are the same "
                    f"{selection.setting}; leave one out"
                )
            values_of[typed] = value
        return selection

    @staticmethod
    def _figures(where: str, values: dict[str, Any]) -> dict[str, PaperFigure]:
        return {arm: PaperFigure.of(text) for arm, text in values.items()}


def _checked_part(where: str, values: Any, read: Callable[[str, Any], Any]) -> Any:
    """Return what the lines of a part mean; nothing written means no lines.

    Raises:
        InputError: they are no lines, or what is wrong with them.
    """
    lines = {} if values is None or values == "" else values
    if not isinstance(lines, dict):
        raise InputError(f"{where} must hold 'name: value' lines, got {values!r}")
    return read(where, lines)


def _with_settings(where: str, values: dict[str, Any]) -> dict[str, Any]:
    settings = values.get("settings")
    if not isinstance(settings, dict):
        return dict(values)
    return {**values, "settings": checked_settings(f"{where} settings", settings)}


def _all_settings(study: StudyConfig) -> Iterator[dict[str, Any]]:
    """Yield every part of a study that may name networks, data or terms: all its settings."""
    yield study.settings
    for name, settings in study.data.items():
        yield {"data": name, **settings}
    for teacher in study.teachers.values():
        yield {"student": teacher.student, **teacher.settings}
        yield from teacher.on.values()
        yield from ({"teacher": model} for model in teacher.ready.values())
    for pair in study.pairs.values():
        model = {} if pair.teacher in study.teachers else {"teacher": pair.teacher}
        yield {"student": pair.student, **model, **pair.settings}
    yield from study.variants.values()
    yield from study.arms.values()
    for selection in study.selections:
        yield from ({selection.setting: value} for value in selection.values)
