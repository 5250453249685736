"""Conduct a study: check, plan, run what is missing, and write its results."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from attention_transfer.config.studies import StudyConfig
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.experiments.study.preflight import (
    check_document,
    check_teachers,
    check_unchanged,
    training_images,
)
from attention_transfer.experiments.study.results import current_plan
from attention_transfer.experiments.study.running import Outcome, StudyFolder, run_missing
from attention_transfer.experiments.study.tables import COLUMNS, explanation, row_title, table_rows
from attention_transfer.experiments.study.workers import Workers
from attention_transfer.report.page import ReportTable, write_report
from attention_transfer.runs import Run, writing_to
from attention_transfer.runs.lock import locked
from attention_transfer.training.signals import StopRequest

__all__ = ["conduct", "open_study"]


def open_study(study: StudyConfig, folder: Path) -> StudyFolder:
    """Check a study against earlier runs in its folder, its data and its teachers.

    Raises:
        InputError: what a run was made from has changed, data or weights are not there; nothing is
            written.
    """
    check_document(folder)
    check_teachers(study)
    images = training_images(study)
    plan, _ = current_plan(study, images, folder)
    for run in plan.all_runs:
        check_unchanged(run, folder)
    return StudyFolder(study, folder, images, package_versions(), describe_machine())


def conduct(
    where: StudyFolder, workers: Workers, say: Callable[[str], None], resume: str
) -> Outcome:
    """Run the missing runs of a study, and write its results and its report.

    Args:
        where: the study and its folder.
        workers: run the runs.
        say: called with a line at the beginning and the end of each run.
        resume: the command that resumes the study.

    Raises:
        InputError: another process runs the study, or its folder cannot be written.
        Interrupted: a signal asked to stop; all runs have saved their state.
    """
    stop = StopRequest()
    with ExitStack() as stack:
        with writing_to(where.folder):
            where.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(where.folder))
        stack.enter_context(stop.caught())
        outcome = run_missing(where, workers, say, lambda: stop.signal, resume)
    _write_report(outcome, where.folder, say)
    return outcome


def _write_report(outcome: Outcome, folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of the table's finished runs; a page that fails costs no results."""
    plan, finished = outcome.results.plan, outcome.results.finished
    runs = [run.folder for run in (*plan.teachers, *plan.runs) if run.folder in finished]
    if not runs:
        return
    try:
        tables = [
            ReportTable(row_title(row), COLUMNS, table_rows(row)) for row in outcome.results.rows
        ]
        write_report(
            [Run(folder / run) for run in runs],
            folder / "report.html",
            tables,
            explanation(outcome.results),
        )
    except Exception as error:
        paths = shlex.join(str(folder / run) for run in runs)
        say(f"the report could not be written ({error}): attention-transfer report {paths}")
