"""The results of a study: what its finished runs say, as one document."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from attention_transfer.config.studies import TEACHER, PaperFigure, StudyConfig
from attention_transfer.experiments.study.plan import Cell, Plan, PlannedRun
from attention_transfer.experiments.study.planning import make_plan
from attention_transfer.runs import Run
from attention_transfer.statistics import (
    PairedDifference,
    Summary,
    paired_difference,
    summarize,
)

__all__ = [
    "SCHEMA_VERSION",
    "STUDY_FILE",
    "Comparison",
    "RowResults",
    "StudyResults",
    "current_plan",
    "read_results",
]

SCHEMA_VERSION = 1

Split = Literal["test", "validation"]

STUDY_FILE = "study.json"
"""The document with a study's results, in its folder."""


@dataclass(frozen=True)
class Comparison:
    """An arm's errors less those of another, paired by seed."""

    arm: str
    baseline: str
    difference: PairedDifference


@dataclass(frozen=True)
class ArmResults:
    """The errors of one arm in one row of the table, in percent, by seed."""

    arm: str
    split: Split
    """The images that the errors are of."""
    errors: dict[int, float]
    top5_errors: dict[int, float]
    seconds: dict[int, float]
    planned: int
    """Runs of the plan; fewer may have ended."""
    diverged: list[int]
    """Seeds of runs that diverged, and so have no errors."""
    paper: PaperFigure | None
    """The paper's figure for this place of its table."""

    @property
    def summary(self) -> Summary | None:
        """The statistics of the errors; None before a run is finished."""
        return summarize(list(self.errors.values())) if self.errors else None


@dataclass(frozen=True)
class RowResults:
    """A row of a study's table: one pair on one data set, for one length."""

    data: str
    pair: str
    variant: str
    arms: list[ArmResults]
    teacher: "TeacherError | None"
    """None if the teacher has other classes than the data, or is not trained yet."""
    teacher_paper: PaperFigure | None
    comparisons: list[Comparison]
    steps: tuple[int, ...]
    """Steps of its runs, if the length is given in steps; several if batches differ."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the arms' errors are of: one, but where an arm's settings choose."""
        return tuple(dict.fromkeys(arm.split for arm in self.arms))


class TeacherError(NamedTuple):
    """A teacher's error in percent, and the images that it is of."""

    split: Split
    error: float


@dataclass(frozen=True)
class StudyResults:
    """What the finished runs of a study say."""

    plan: Plan
    rows: list[RowResults]
    ended: set[str]
    """Folders of runs that are finished or diverged."""
    finished: set[str]
    """Folders of finished runs."""

    @property
    def study(self) -> StudyConfig:
        """The study that was planned, with its arms and seeds."""
        return self.plan.study

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the errors of the table are of."""
        return tuple(dict.fromkeys(split for row in self.rows for split in row.splits))

    @property
    def missing(self) -> list[PlannedRun]:
        """The runs that have not ended."""
        return [run for run in self.plan.all_runs if run.folder not in self.ended]

    @property
    def complete(self) -> bool:
        """Whether all runs have ended."""
        return not self.missing

    def document(self, versions: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contents of ``study.json``.

        Args:
            versions: of the installed packages.
            machine: a description of this machine.
        """
        runs = self.plan.all_runs
        return {
            "schema_version": SCHEMA_VERSION,
            "study": self.study.model_dump(mode="json"),
            "versions": dict(versions),
            "machine": dict(machine),
            "complete": self.complete,
            "runs_planned": len(runs),
            "runs_finished": len(self.finished),
            "runs_diverged": len(self.ended - self.finished),
            "rows": [_row_document(row) for row in self.rows],
            "selections": [
                {
                    **dict(zip(("data", "pair", "variant"), selection.row, strict=True)),
                    "arm": selection.arm,
                    "setting": selection.setting,
                    "validation_errors": {
                        value: None if math.isinf(error) else error
                        for value, error in selection.errors.items()
                    },
                    "chosen": selection.chosen,
                }
                for selection in self.plan.selections
            ],
            "runs": [
                {
                    "folder": run.folder,
                    "finished": run.folder in self.finished,
                    "diverged": run.folder in self.ended - self.finished,
                    "settings": {name: _plain(value) for name, value in run.settings.items()},
                }
                for run in runs
            ],
        }


def _row_document(row: RowResults) -> dict[str, Any]:
    return {
        "data": row.data,
        "pair": row.pair,
        "variant": row.variant,
        "steps": list(row.steps),
        **{f"teacher_{split}_error": None for split in row.splits},
        **({f"teacher_{row.teacher.split}_error": row.teacher.error} if row.teacher else {}),
        "teacher_paper": _figure(row.teacher_paper),
        "arms": [
            {
                "arm": arm.arm,
                f"{arm.split}_errors": _by_seed(arm.errors),
                f"{arm.split}_top5_errors": _by_seed(arm.top5_errors),
                "seconds": _by_seed(arm.seconds),
                "runs_planned": arm.planned,
                "diverged_seeds": arm.diverged,
                "statistics": None if arm.summary is None else asdict(arm.summary),
                "paper": _figure(arm.paper),
            }
            for arm in row.arms
        ],
        "comparisons": [
            {
                "arm": one.arm,
                "baseline": one.baseline,
                **asdict(one.difference),
                "established": one.difference.established,
                "sentence": one.difference.sentence,
            }
            for one in row.comparisons
        ],
    }


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def _figure(figure: PaperFigure | None) -> dict[str, Any] | None:
    return None if figure is None else figure.model_dump(mode="json")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def current_plan(
    study: StudyConfig, images: Mapping[str, int], folder: Path
) -> tuple[Plan, set[str]]:
    """Return the plan by what selection runs have found so far, and the folders of ended runs.

    A run has ended if it is finished, or if it diverged and no other run needs it. A run whose
    settings wait to be chosen counts when they are.

    Args:
        study: the study.
        images: training images of each data set, for lengths in steps.
        folder: of the study.
    """
    plan = make_plan(study, images)
    errors = {}
    for run in plan.selection_runs:
        if Run(folder / run.folder).is_finished:
            errors[run.folder] = run_figures(folder / run.folder).validation_error
        elif diverged(folder / run.folder):
            errors[run.folder] = math.inf
    if plan.selections:
        plan = make_plan(study, images, errors)
    ended = {
        run.folder
        for run in plan.all_runs
        if not run.waits_for
        and (
            Run(folder / run.folder).is_finished
            or (diverged(folder / run.folder) and run not in plan.teachers)
        )
    }
    return plan, ended


def diverged(folder: Path) -> bool:
    """Return whether the run in a folder diverged."""
    return Run(folder).divergence is not None


class RunFigures(NamedTuple):
    """What a study's tables need of a finished run; errors in percent."""

    validation_error: float
    split: Split
    """The images that the next figures are of: test, or validation in a run without test."""
    error: float
    top5_error: float | None
    teacher_error: float | None
    seconds: float


def run_figures(folder: Path) -> RunFigures:
    """Return the figures of a finished run; a record is read once while it stays as it is.

    Raises:
        InputError: the record is damaged.
    """
    return _figures_of(folder, (folder / "record.json").stat().st_mtime_ns)


@cache
def _figures_of(folder: Path, _written: int) -> RunFigures:
    record = Run(folder).record
    final, teacher = record.final, record.teacher
    split, _, error = final.held_out
    tested = split == "test"
    teacher_error = None
    if teacher is not None:
        teacher_error = teacher.test_error if tested else teacher.validation_error
    return RunFigures(
        final.validation_error,
        split,
        error,
        final.test_top5_error if tested else final.validation_top5_error,
        teacher_error,
        record.seconds,
    )


def read_results(study: StudyConfig, images: Mapping[str, int], folder: Path) -> StudyResults:
    """Return the results of a study's finished runs.

    Raises:
        InputError: the record of a run is damaged.
    """
    plan, ended = current_plan(study, images, folder)
    finished = {path for path in ended if Run(folder / path).is_finished}
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in plan.cells:
        rows.setdefault(cell.row, []).append(cell)
    reading = _Reading(plan, folder, ended, finished)
    return StudyResults(
        plan,
        [reading.row(cells) for cells in rows.values()],
        ended,
        finished,
    )


class _Reading:
    """Reads the figures of finished runs, each record once."""

    def __init__(self, plan: Plan, folder: Path, ended: set[str], finished: set[str]) -> None:
        self.plan = plan
        self.diverged = ended - finished
        self.runs = {path: run_figures(folder / path) for path in finished}
        self.planned = {run.folder: run for run in plan.runs}

    def row(self, cells: list[Cell]) -> RowResults:
        first, teacher = cells[0], self._teacher(cells)
        arms = {cell.arm: self._arm(cell) for cell in cells}
        return RowResults(
            first.data,
            first.pair,
            first.variant,
            list(arms.values()),
            teacher,
            self._paper(first, TEACHER),
            list(self._comparisons(arms, teacher)),
            self.plan.steps.get(first.row, ()),
        )

    def _arm(self, cell: Cell) -> ArmResults:
        seeds = self.plan.cells[cell]
        runs = {seed: self.runs[path] for seed, path in seeds.items() if path in self.runs}
        splits = [run.split for run in runs.values()]
        splits += [self.planned[path].split for path in seeds.values()]
        return ArmResults(
            cell.arm,
            splits[0],
            {seed: run.error for seed, run in runs.items()},
            {seed: run.top5_error for seed, run in runs.items() if run.top5_error is not None},
            {seed: run.seconds for seed, run in runs.items()},
            len(seeds),
            [seed for seed, path in seeds.items() if path in self.diverged],
            self._paper(cell, cell.arm),
        )

    def _paper(self, cell: Cell, arm: str) -> PaperFigure | None:
        study = self.plan.study
        of_the_paper = study.paper_data is None or study.kind_of(cell.data) in study.paper_data
        for row in (*((cell.pair,) if of_the_paper else ()), cell.data):
            if arm in study.paper.get(row, {}):
                return study.paper[row][arm]
        return None

    def _teacher(self, cells: list[Cell]) -> TeacherError | None:
        """Return the teacher's error, from its own run or the record of a student's."""
        folder = self.plan.teacher_of_row.get(cells[0].row)
        if folder is not None:
            run = self.runs.get(folder)
            return None if run is None else TeacherError(run.split, run.error)
        for cell in cells:
            for path in self.plan.cells[cell].values():
                run = self.runs.get(path)
                if run is not None and run.teacher_error is not None:
                    return TeacherError(run.split, run.teacher_error)
        return None

    def _comparisons(
        self, arms: Mapping[str, ArmResults], teacher: TeacherError | None
    ) -> Iterator[Comparison]:
        of_teacher = {} if teacher is None or TEACHER in arms else {TEACHER: teacher}
        for arm, baselines in self.plan.study.comparisons.items():
            for name in baselines:
                baseline = of_teacher.get(name) or arms.get(name)
                if arm not in arms or baseline is None or arms[arm].split != baseline.split:
                    continue  # not in this row, or errors of other images
                difference = paired_difference(arms[arm].errors, _errors(baseline, arms[arm]))
                if difference is not None:
                    yield Comparison(arm, name, difference)


def _errors(baseline: ArmResults | TeacherError, arm: ArmResults) -> Mapping[int, float]:
    """Return a baseline's errors by seed; a teacher has one, whatever the seed of the arm."""
    if isinstance(baseline, TeacherError):
        return dict.fromkeys(arm.errors, baseline.error)
    return baseline.errors
