"""The plan of a study: its runs, their places in the table, and the choices of settings."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attention_transfer.config import RunConfig
from attention_transfer.config.studies import PACKAGED, StudyConfig, slug
from attention_transfer.experiments.packaged_teacher import packaged_teacher

__all__ = ["Cell", "Plan", "PlannedRun", "Selection"]


@dataclass(frozen=True)
class Cell:
    """A place in the study's table: one arm of one pair on one data set, for one length."""

    data: str
    pair: str
    variant: str
    """Empty without variants."""
    arm: str

    @property
    def row(self) -> tuple[str, str, str]:
        """The place of the row: data, pair and variant."""
        return self.data, self.pair, self.variant

    @property
    def folder(self) -> str:
        """The part of the folders of its runs."""
        parts = (self.data, self.pair, self.variant, self.arm)
        return "/".join(slug(part) for part in parts if part)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study."""

    folder: str
    """In the study's folder: of the first cell that the run belongs to."""
    settings: dict[str, Any]
    """Of the run, by the names of :class:`RunConfig`; without its folder, with its teacher."""
    needs: tuple[str, ...] = ()
    """Folders of runs that must be finished before."""
    cache: str | None = None
    """Folder of the teacher's targets, in the study's folder."""
    waits_for: str = ""
    """The setting that selection runs must choose before."""

    @property
    def split(self) -> Literal["test", "validation"]:
        """The images that the run's error in the table is of."""
        return "validation" if self.settings.get("test") is False else "test"

    def config(self, study: Path) -> RunConfig:
        """Return the run's configuration, with paths in the study's folder.

        Args:
            study: the study's folder.

        Raises:
            InputError: the settings do not fit together.
        """
        return RunConfig.checked(self.resolved(study))

    def resolved(self, study: Path) -> dict[str, Any]:
        """Return the run's settings with paths in the study's folder."""
        settings = {**self.settings, "out": str(study / self.folder)}
        if settings.get("teacher") == PACKAGED:
            settings["teacher"] = str(packaged_teacher())
        if self.needs:
            settings["teacher"] = str(study / self.needs[0])
        if self.cache is not None:
            settings["cache"] = str(study / self.cache)
        return settings


@dataclass(frozen=True)
class Selection:
    """A choice of one setting for one row and arm, by the validation errors of some runs."""

    row: tuple[str, str, str]
    arm: str
    """Whose runs decide."""
    setting: str
    runs: dict[str, tuple[str, ...]]
    """Value -> folders of its runs."""
    errors: dict[str, float] = field(default_factory=dict)
    """Value -> mean validation error in percent, of values whose runs have all ended; infinite
    where one diverged.
    """

    @property
    def chosen(self) -> str | None:
        """The value with the lowest mean error; None before all runs have ended, or if all values
        diverged.
        """
        if len(self.errors) < len(self.runs) or self.diverged:
            return None
        return min(self.errors, key=self.errors.__getitem__)

    @property
    def diverged(self) -> bool:
        """Whether runs of every value diverged, so that none can be chosen."""
        return len(self.errors) == len(self.runs) and min(self.errors.values()) == math.inf


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in an order in which each comes after those it needs."""

    study: StudyConfig
    teachers: tuple[PlannedRun, ...]
    selection_runs: tuple[PlannedRun, ...]
    runs: tuple[PlannedRun, ...]
    cells: dict[Cell, dict[int, str]]
    """Cell -> seed -> the folder of its run."""
    selections: tuple[Selection, ...]
    teacher_of_row: dict[tuple[str, str, str], str]
    """Row -> the folder of its teacher's run, of those that the study trains."""
    steps: dict[tuple[str, str, str], tuple[int, ...]]
    """Row whose length is given in steps -> the steps of its runs, which are whole epochs."""

    @property
    def all_runs(self) -> tuple[PlannedRun, ...]:
        """Teachers, selection runs and the runs of the table."""
        return self.teachers + self.selection_runs + self.runs
