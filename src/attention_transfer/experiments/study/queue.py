"""The commands of a study's runs, one a line, for any job queue."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from attention_transfer.config import CacheConfig, flag_of
from attention_transfer.config.studies import StudyConfig
from attention_transfer.experiments.study.caches import field_terms
from attention_transfer.experiments.study.plan import Plan, PlannedRun
from attention_transfer.experiments.study.preflight import check_unchanged
from attention_transfer.experiments.study.results import current_plan
from attention_transfer.experiments.study.workers import run_command
from attention_transfer.trust import factories_in, trust_flags

__all__ = ["command_lines"]


def command_lines(study: StudyConfig, images: Mapping[str, int], folder: Path) -> Iterator[str]:
    """Yield the command of each missing run; comments say what must be finished before.

    Args:
        study: the study.
        images: training images of each data set, for lengths in steps.
        folder: of the study, on a disk that all machines of the queue share.

    Raises:
        InputError: what a run in the folder was made from has changed.
    """
    plan, finished = current_plan(study, images, folder)
    for run in plan.all_runs:
        check_unchanged(run, folder)
    missing = [run for run in plan.all_runs if run.folder not in finished]
    waiting = [run for run in missing if run.waits_for]
    ready = [run for run in missing if not run.waits_for]
    stages = (
        ("teachers", [run_command(run, folder) for run in ready if run in plan.teachers]),
        ("caches of the teachers' targets, after the teachers", list(_caches(ready, plan, folder))),
        ("runs that choose settings", _commands(ready, plan.selection_runs, folder)),
        ("runs of the table", _commands(ready, plan.runs, folder)),
    )
    before = ""
    for what, commands in stages:
        if commands:
            yield f"# {what}: {len(commands)}{before}"
            yield from commands
            before = "; each after all lines above"
    if waiting:
        settings = " and ".join(dict.fromkeys(run.waits_for for run in waiting))
        yield (
            f"# {len(waiting)} more runs wait until the runs above have chosen {settings}: then "
            "print the commands again"
        )
    if not missing:
        yield "# all runs are finished; the same command without --commands writes the results"


def _commands(ready: list[PlannedRun], runs: tuple[PlannedRun, ...], folder: Path) -> list[str]:
    wanted = {run.folder for run in runs}
    return [run_command(run, folder) for run in ready if run.folder in wanted]


def _caches(ready: list[PlannedRun], plan: Plan, folder: Path) -> Iterator[str]:
    """Yield a command for each cache that the runs share."""
    seen: set[str] = set()
    for run in ready:
        if run.cache is None or run.cache in seen or field_terms(run.settings):
            continue  # the first run that reads fields of its own builds their cache
        seen.add(run.cache)
        resolved = run.resolved(folder)
        config = run.config(folder)
        values = {
            name: value
            for name, value in resolved.items()
            if name in CacheConfig.model_fields and name not in ("cache", "views")
        }
        values["views"] = config.cache_views or config.epochs
        words = ["attention-transfer", "cache", "build", str(folder / run.cache)]
        for name, value in values.items():
            if isinstance(value, bool):
                words.append(flag_of(name, CacheConfig) if value else f"--no-{name}")
            elif value is not None:
                words += [flag_of(name, CacheConfig), str(value)]
        if config.gradient_beta is not None:
            words.append("--gradient")
        yield shlex.join([*words, *trust_flags(factories_in(values))])
