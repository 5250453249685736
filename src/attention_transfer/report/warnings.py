"""What someone should know before believing the figures."""

from collections.abc import Iterator, Sequence

from attention_transfer.report.groups import Group, baseline_of
from attention_transfer.runs import Run

__all__ = ["warnings_of"]

LONG = 30
"""Seconds of a run whose start no longer counts."""


def warnings_of(groups: Sequence[Group]) -> Iterator[str]:
    """Of the runs, and of comparing them."""
    runs = [run for group in groups for run in group.runs]
    notices: dict[str, list[str]] = {}
    for run in runs:
        for notice in run.record.data.notices:
            notices.setdefault(notice, []).append(run.name)
    for notice, names in notices.items():
        yield notice if len(names) == len(runs) else f"{', '.join(names)}: {notice}"
    for run in runs:
        yield from _of_maps(run)
        yield from _of_training(run)
    for group in groups:
        yield from _of_baseline(group, baseline_of(group, groups))


def _of_maps(run: Run) -> Iterator[str]:
    if run.attention is not None:
        return
    kept = run.record.attention
    if kept and not kept.points:
        yield f"{run.name}: {run.record.student.name} has no place where attention can be read"
    else:
        yield f"{run.name} kept no attention maps (--probes), so none are shown of it"


def _of_training(run: Run) -> Iterator[str]:
    best = run.record.best_on_validation
    last = run.record.final.validation_error
    if last - best.validation_error > 2:
        yield (
            f"{run.name}: the last weights are worse on validation ({last:.1f} %) than those after "
            f"epoch {best.epoch} ({best.validation_error:.1f} %); train for fewer epochs, or "
            "with a lower rate"
        )
    waited = sum(row.seconds_waiting_for_data for row in run.metrics)
    seconds = run.record.seconds
    if seconds > LONG and waited > 0.03 * seconds:
        yield (
            f"{run.name} waited for data {100 * waited / seconds:.0f} % of its time; give it more "
            "--workers"
        )
    for name in run.metrics[-1].terms if run.metrics else ():
        if not any(row.terms.get(name) for row in run.metrics):
            yield f"{run.name}: the term {name} was 0 throughout"


def _of_baseline(group: Group, alone: Group | None) -> Iterator[str]:
    if alone is None:
        return
    epochs = [found.first.config.epochs for found in (alone, group)]
    if epochs[0] != epochs[1]:
        yield (
            f"{alone.label} was trained for {epochs[0]} epochs and {group.label} for {epochs[1]}: "
            "what they differ by is not due to teaching alone"
        )
