"""Run what is missing of a study, and keep its results up to date on the disk."""

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attention_transfer.config.studies import StudyConfig
from attention_transfer.errors import Interrupted
from attention_transfer.experiments.study.plan import PlannedRun
from attention_transfer.experiments.study.preflight import check_unchanged
from attention_transfer.experiments.study.results import (
    STUDY_FILE,
    StudyResults,
    current_plan,
    read_results,
)
from attention_transfer.experiments.study.tables import markdown
from attention_transfer.experiments.study.workers import Workers
from attention_transfer.files import write_json, write_text
from attention_transfer.runs import Run, writing_to

__all__ = ["Outcome", "StudyFolder", "run_missing"]


@dataclass(frozen=True)
class StudyFolder:
    """A study and the folder of its results."""

    study: StudyConfig
    folder: Path
    images: Mapping[str, int]
    """How many training images each data set has, for lengths in steps."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)

    def write(self) -> StudyResults:
        """Write ``study.json`` and ``table.md`` of the runs finished so far, and return them."""
        results = read_results(self.study, self.images, self.folder)
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / STUDY_FILE, results.document(self.versions, self.machine))
            write_text(self.folder / "table.md", markdown(results))
        return results


@dataclass(frozen=True)
class Outcome:
    """How running a study ended."""

    results: StudyResults
    failed: dict[str, str]
    """Folder of a run that failed -> why."""


def run_missing(
    where: StudyFolder,
    workers: Workers,
    say: Callable[[str], None],
    stopped: Callable[[], int],
    resume: str,
) -> Outcome:
    """Run the runs of a study that have not ended; a run that fails does not stop the others.

    Args:
        where: the study and its folder.
        workers: run the runs.
        say: called with a line at the beginning and the end of each run.
        stopped: the number of a signal that asks to stop, or 0.
        resume: the command that resumes the study, for the message.

    Raises:
        Interrupted: a signal asked to stop; all runs have saved their state.
        InputError: what a run was made from has changed, as by another choice of a setting.
    """
    loop = _Loop(where, workers, say)
    where.write()
    try:
        while not loop.done:
            if stopped():
                raise Interrupted("stopped", stopped())
            loop.step()
    except Interrupted as error:
        workers.stop()
        where.write()
        name = signal.Signals(error.signal).name
        message = f"stopped by {name}; resume the study: {resume}"
        raise Interrupted(message, error.signal) from None
    except BaseException:
        workers.stop()
        raise
    results = where.write()
    return Outcome(results, loop.failed | dict(_not_chosen(results)))


def _not_chosen(results: StudyResults) -> Iterator[tuple[str, str]]:
    """Yield the choices that cannot be made, each with the reason."""
    for selection in results.plan.selections:
        if selection.diverged:
            where = ", ".join((*filter(None, selection.row), selection.arm))
            values = ", ".join(selection.runs)
            yield (
                f"choosing {selection.setting} for {where}",
                f"the runs of every value diverged ({values}); give others in the study's select",
            )


class _Loop:
    """Begins runs as soon as those that they need are finished."""

    def __init__(self, where: StudyFolder, workers: Workers, say: Callable[[str], None]) -> None:
        self.where, self.workers, self.say = where, workers, say
        self.failed: dict[str, str] = {}
        self.running: set[str] = set()
        self.checked: set[str] = set()
        self._read()

    def _read(self) -> None:
        """Plan anew: selection runs that have ended may have chosen a setting."""
        self.plan, self.ended = current_plan(self.where.study, self.where.images, self.where.folder)
        for run in self.plan.all_runs:
            if not run.waits_for and run.folder not in self.checked:
                check_unchanged(run, self.where.folder)
                self.checked.add(run.folder)

    @property
    def done(self) -> bool:
        """Whether no run is running and none can be begun."""
        return not self.running and self._next() is None

    def _next(self) -> PlannedRun | None:
        """Return a run that can be begun; None if there is none now."""
        taken = self.ended | self.running | set(self.failed)
        for run in self.plan.all_runs:
            if run.folder not in taken and not run.waits_for and self.ended.issuperset(run.needs):
                return run
        return None

    def step(self) -> None:
        """Begin what can be begun, and wait for the end of a run."""
        while self.workers.free and (run := self._next()) is not None:
            number = len(self.ended) + len(self.running) + len(self.failed) + 1
            self.say(f"[{number} of {len(self.plan.all_runs)}] {run.folder}: begins")
            self.running.add(run.folder)
            self.workers.begin(run)
        for ended in self.workers.ended(1.0):
            folder = ended.run.folder
            self.running.discard(folder)
            result = Run(self.where.folder / folder)
            teachers = {run.folder for run in self.plan.teachers}
            if result.is_finished:
                error = result.record.final.held_out
                seconds = result.record.seconds
                self.say(f"{folder}: {error.split} error {error.error:.2f} %, {seconds:.0f} s")
            elif result.divergence is not None and folder not in teachers:
                self.say(f"{folder} diverged: {result.divergence.strip()}")
            else:
                self.failed[folder] = ended.error or "it ended without a record"
                self.say(f"{folder} failed: {self.failed[folder]}")
            self._read()
            self.where.write()
