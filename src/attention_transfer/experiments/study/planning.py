"""Plan a study: from its value to the list of its runs, without reading or writing anything."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.config.runs import NEEDS_TEACHER
from attention_transfer.config.studies import (
    PACKAGED,
    STEPS,
    PairConfig,
    SelectionConfig,
    StudyConfig,
    checked_settings,
    slug,
)
from attention_transfer.errors import InputError, first_problems
from attention_transfer.experiments.packaged_teacher import PACKAGED_DATA
from attention_transfer.experiments.study.caches import cache_folder
from attention_transfer.experiments.study.plan import Cell, Plan, PlannedRun, Selection
from attention_transfer.experiments.study.recipes import recipe_settings, shortened

__all__ = ["make_plan"]


def make_plan(
    study: StudyConfig,
    images: Mapping[str, int] | None = None,
    validation_errors: Mapping[str, float] | None = None,
) -> Plan:
    """Return the plan of a study.

    Args:
        study: the study.
        images: how many training images each data set has, for lengths in steps.
        validation_errors: of selection runs that have ended, by folder, in percent; infinite of
            one that diverged.

    Raises:
        InputError: settings do not fit together, or a length in steps without ``images``.
    """
    planning = _Planning(study, images or {}, validation_errors or {})
    faults: dict[str, list[str]] = {}
    for row in planning.rows():
        for arm in study.pairs[row[1]].arms or study.arms:
            try:
                planning.add(Cell(*row, arm))
            except InputError as error:
                faults.setdefault(str(error), []).append(f"{arm} of {row[1]}")
    found = [f"{first_problems(where)}: {error}" for error, where in faults.items()]
    found += dict.fromkeys(planning.incomparable())
    if found:
        raise InputError("; ".join(found))
    return planning.plan()


class _Planning:
    """Collects the runs of a study; equal runs of several cells are one."""

    def __init__(
        self,
        study: StudyConfig,
        images: Mapping[str, int],
        validation_errors: Mapping[str, float],
    ) -> None:
        self.study = study
        self.images = images
        self.validation_errors = validation_errors
        self.teachers: dict[str, PlannedRun] = {}
        self.selection_runs: dict[str, PlannedRun] = {}
        self.runs: dict[str, PlannedRun] = {}
        self.cells: dict[Cell, dict[int, str]] = {}
        self.selections: dict[tuple[tuple[str, str, str], str], Selection] = {}
        self.teacher_of_row: dict[tuple[str, str, str], str] = {}
        self.steps: dict[tuple[str, str, str], list[int]] = {}
        self._known: dict[str, str] = {}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield data, pair and variant of every row of the table."""
        for data in self.study.data:
            for name, pair in self.study.pairs.items():
                if pair.data is None or data in pair.data:
                    for variant in self.study.variants or ("",):
                        yield data, name, variant

    def incomparable(self) -> Iterator[str]:
        """Yield what is wrong with comparisons: errors of other images."""
        split = {
            cell: self.runs[folder].split
            for cell, seeds in self.cells.items()
            for folder in seeds.values()
        }
        for cell in split:
            for other in self.study.comparisons.get(cell.arm, ()):
                baseline = replace(cell, arm=other)
                if split.get(baseline, split[cell]) != split[cell]:
                    yield (
                        f"compare {cell.arm}: its errors are of {split[cell]} images and those of "
                        f"{other} of {split[baseline]} images; give both the same setting test, "
                        "or leave the comparison out"
                    )

    def plan(self) -> Plan:
        return Plan(
            self.study,
            tuple(self.teachers.values()),
            tuple(self.selection_runs.values()),
            tuple(self.runs.values()),
            self.cells,
            tuple(self.selections.values()),
            self.teacher_of_row,
            {row: tuple(steps) for row, steps in self.steps.items()},
        )

    def add(self, cell: Cell) -> None:
        """Add the runs of a cell, and those that they need."""
        chosen, waits_for = {}, ""
        selection = self._selection_of(cell.arm)
        if selection is not None:
            choice = self._choice(cell, selection)
            value = choice.chosen
            waits_for = "" if value is not None else selection.setting
            middle = selection.values[len(selection.values) // 2]
            chosen = _of_selection(selection, middle if value is None else value)
        settings, steps = self._settings(cell, chosen)
        if steps is not None and steps not in self.steps.setdefault(cell.row, []):
            self.steps[cell.row].append(steps)
        seeds = self.cells.setdefault(cell, {})
        for seed in self.study.seeds:
            # The attention maps of one run are enough to look at; which one does not depend on the
            # other seeds, which may be added or left out later.
            maps = {} if seed == 0 or "probes" in settings else {"probes": 0}
            run = self._run(f"runs/{cell.folder}/seed-{seed}", cell, {**settings, **maps}, seed)
            run = replace(run, waits_for=waits_for)
            seeds[seed] = self._shared(run, self.runs)

    def _shared(self, run: PlannedRun, runs: dict[str, PlannedRun]) -> str:
        """Add a run unless an equal one is there, and return the folder of the one there is.

        A run whose setting waits to be chosen may turn out equal to another, and is kept until
        then.

        Raises:
            InputError: its settings do not fit together.
        """
        settings = run.config(Path("study")).model_dump(mode="json", exclude={"out"})
        key = repr((settings, run.folder if run.waits_for else ""))
        folder = self._known.setdefault(key, run.folder)
        if folder == run.folder:
            runs[folder] = run
        return folder

    def _settings(self, cell: Cell, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
        """Return the settings of a cell's runs, but for teacher, seed and folders; and their steps
        if the length is given in steps.

        Args:
            cell: the place in the table.
            chosen: by a selection, which overrides all else.
        """
        study, pair = self.study, self.study.pairs[cell.pair]
        of_data = {"data": cell.data, **study.data[cell.data]}
        parts = (
            recipe_settings(study.recipe, of_data["data"]),
            study.settings,
            of_data,
            pair.settings,
            study.variants.get(cell.variant, {}),
            study.arms[cell.arm],
            chosen,
        )
        merged: dict[str, Any] = {"student": pair.student}
        for part in parts:
            merged = _overridden(merged, part)
        return self._with_epochs(merged, cell.data)

    def _with_epochs(
        self, settings: dict[str, Any], data: str
    ) -> tuple[dict[str, Any], int | None]:
        """Return settings with a length in epochs, shortened if the recipe says so; and how many
        steps these epochs have, if the length is given in steps.
        """
        default = int(RunConfig.model_fields["epochs"].default)
        if self.study.recipe == "short":
            settings = shortened(settings, default)
        settings = dict(settings)
        steps = settings.pop(STEPS, None)
        if steps is None:
            return settings, None
        if data not in self.images:
            raise InputError(f"steps need the number of images of {data}, which is not known")
        batch = int(settings.get("batch_size", RunConfig.model_fields["batch_size"].default))
        of_an_epoch = -(-self.images[data] // batch)
        epochs = max(1, round(int(steps) / of_an_epoch))
        return {**settings, "epochs": epochs}, epochs * of_an_epoch

    def _run(self, folder: str, cell: Cell, settings: dict[str, Any], seed: int) -> PlannedRun:
        """Return a run of a cell; its teacher is added to the plan."""
        settings = {**settings, "seed": seed, "report": False}
        if "teacher" in settings and settings["teacher"] is None:
            return PlannedRun(folder, _alone(settings, self.study.arms[cell.arm]))
        pair = self.study.pairs[cell.pair]
        model, needed = self._teacher(pair, cell)
        settings["teacher"] = model
        cache = cache_folder(settings, cell.data, pair.teacher) if self.study.cache else None
        return PlannedRun(folder, settings, () if needed is None else (needed,), cache)

    def _teacher(self, pair: PairConfig, cell: Cell) -> tuple[str, str | None]:
        """Return a row's teacher as a MODEL, and the folder of its run if the study trains it."""
        teacher = self.study.teachers.get(pair.teacher)
        if teacher is None or cell.data in teacher.ready:
            model = pair.teacher if teacher is None else teacher.ready[cell.data]
            if model == PACKAGED and self.study.kind_of(cell.data) != PACKAGED_DATA:
                raise InputError(
                    f"the packaged teacher was trained on {PACKAGED_DATA} and not on {cell.data}; "
                    "name one of the study's teachers, which are trained on each data set"
                )
            return model, None
        folder = f"teachers/{slug(cell.data)}/{slug(pair.teacher)}"
        if folder not in self.teachers:
            study = self.study
            of_data = {"data": cell.data, **study.data[cell.data]}
            settings: dict[str, Any] = {"student": teacher.student}
            for part in (
                recipe_settings(study.recipe, of_data["data"]),
                study.settings,
                of_data,
                teacher.settings,
                teacher.on.get(cell.data, {}),
            ):
                settings = _overridden(settings, part)
            settings, _ = self._with_epochs(settings, cell.data)
            run = PlannedRun(
                folder, _alone({**settings, "seed": teacher.seed, "report": False}, {})
            )
            run.config(Path("study"))
            self.teachers[folder] = run
        self.teacher_of_row[cell.row] = folder
        return folder, folder

    def _selection_of(self, arm: str) -> SelectionConfig | None:
        for selection in self.study.selections:
            if not selection.arms or arm in selection.arms:
                return selection
        return None

    def _choice(self, cell: Cell, selection: SelectionConfig) -> Selection:
        """Return the choice for a cell, and add its runs to the plan."""
        arm = selection.by or cell.arm
        if (cell.row, arm) in self.selections:
            return self.selections[cell.row, arm]
        deciding = replace(cell, arm=arm)
        runs: dict[str, tuple[str, ...]] = {}
        for value in selection.values:
            folders = []
            for seed in selection.seeds:
                folder = (
                    f"selection/{deciding.folder}/{selection.setting}-{slug(value)}/seed-{seed}"
                )
                settings, _ = self._settings(deciding, _of_selection(selection, value))
                changed = {**settings, "probes": 0, "test": False}
                run = self._run(folder, deciding, changed, seed)
                folders.append(self._shared(run, self.selection_runs))
            runs[value] = tuple(folders)
        errors = {
            value: statistics.mean(self.validation_errors[folder] for folder in folders)
            for value, folders in runs.items()
            if all(folder in self.validation_errors for folder in folders)
        }
        choice = Selection(cell.row, arm, selection.setting, runs, errors)
        self.selections[cell.row, arm] = choice
        return choice


def _alone(settings: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run without a teacher, less those of a transfer that its arm lacks."""
    return {
        name: value for name, value in settings.items() if name not in NEEDS_TEACHER or name in arm
    }


def _of_selection(selection: SelectionConfig, value: str) -> dict[str, Any]:
    """Return the setting of a selection with one of its values, of the setting's type."""
    return checked_settings("select", {selection.setting: value})


def _overridden(settings: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings overridden by others; a length replaces a length in another unit."""
    if STEPS in part or "epochs" in part:
        settings = {
            name: value for name, value in settings.items() if name not in ("epochs", STEPS)
        }
    return {**settings, **part}
