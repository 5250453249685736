"""What a reader should know before trusting or comparing the results."""

from collections.abc import Iterator, Sequence

from attention_transfer.report.groups import Group, find_baseline
from attention_transfer.runs import Run
from attention_transfer.runs.gradient_ratios import overpowering_terms

__all__ = ["run_warnings"]

LONG_RUN = 30
"""Seconds; in shorter runs, the time that loaders need to start looks like waiting for data."""


def run_warnings(groups: Sequence[Group]) -> Iterator[str]:
    """Yield warnings about the runs and about their comparison."""
    runs = [run for group in groups for run in group.runs]
    notices: dict[str, list[str]] = {}
    for run in runs:
        for notice in run.record.data.notices:
            notices.setdefault(notice, []).append(run.name)
    for notice, names in notices.items():
        yield notice if len(names) == len(runs) else f"{', '.join(names)}: {notice}"
    for run in runs:
        if run.record.teacher is not None:
            yield from (f"{run.name}: {warning}" for warning in run.record.teacher.warnings)
        for change in run.record.changes:
            yield (
                f"{run.name}: {change.name} was {change.before} until step {change.step} of epoch "
                f"{change.epoch + 1}, then {change.after}"
            )
        yield from (f"{run.name}: {warning}" for warning in overpowering_terms(run.metrics))
        yield from _about_maps(run)
        yield from _about_training(run)
    for group in groups:
        yield from _about_baseline(group, find_baseline(group, groups))


def _about_maps(run: Run) -> Iterator[str]:
    if run.attention is not None:
        return
    summary = run.record.attention
    if summary and not summary.points:
        yield f"{run.name}: {run.record.student.name} has no attention points"
    else:
        yield f"{run.name} saved no attention maps, so none are shown; train with --probes above 0"


def _about_training(run: Run) -> Iterator[str]:
    best = run.record.best_on_validation
    last = run.record.final.validation_error
    if last - best.validation_error > 2:
        yield (
            f"{run.name}: the last weights have a higher validation error ({last:.1f} %) than "
            f"those after epoch {best.epoch} ({best.validation_error:.1f} %); train for "
            "fewer epochs, or with a lower learning rate"
        )
    waited = sum(row.seconds_waiting_for_data for row in run.metrics)
    seconds = run.record.seconds
    if seconds > LONG_RUN and waited > 0.03 * seconds:
        yield (
            f"{run.name} waited for data {100 * waited / seconds:.0f} % of its time; give it more "
            "--workers"
        )
    for name in run.metrics[-1].terms if run.metrics else ():
        if not any(row.terms.get(name) for row in run.metrics):
            yield f"{run.name}: the term {name} was 0 in every epoch"


def _about_baseline(group: Group, alone: Group | None) -> Iterator[str]:
    if alone is None:
        return
    epochs = [each.representative.record.trained_epochs for each in (alone, group)]
    if epochs[0] != epochs[1]:
        yield (
            f"{alone.label} was trained for {epochs[0]} epochs and {group.label} for {epochs[1]}: "
            "their difference is not due to the teacher alone"
        )
