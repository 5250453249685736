"""Runs side by side: seeds of one setting together, the student alone beside the distilled one."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.records import RunRecord

__all__ = ["Changes", "Group", "changes", "grouped", "headline", "interval", "warnings_of"]

SEPARATE = ("seed", "out", "probes", "probe_every", "report", "workers", "track")
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    runs: list[RunRecord]
    label: str

    @property
    def first(self) -> RunRecord:
        """The run that stands for all where one is shown."""
        return self.runs[0]

    @property
    def alone(self) -> bool:
        """Whether nobody taught the network."""
        return self.first.teacher is None

    @property
    def errors(self) -> list[float]:
        """Test errors, in percent."""
        return [run.test_error for run in self.runs]

    @property
    def error(self) -> float:
        """Their mean."""
        return statistics.mean(self.errors)

    @property
    def spread(self) -> str:
        """Their standard deviation; of one run, the 95 % interval that its images leave."""
        if len(self.runs) > 1:
            return f"± {statistics.stdev(self.errors):.2f} over {len(self.runs)} seeds"
        low, high = interval(self.error, int(self.first.final["test_images"]))
        return f"{low:.1f} to {high:.1f}"

    @property
    def shown_error(self) -> str:
        """The error as it is told: to a tenth, or a hundredth over several seeds."""
        return f"{self.error:.{2 if len(self.runs) > 1 else 1}f} %"


def interval(error: float, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of an error rate in percent: where the rate over all images of this kind
    lies, with 95 % confidence.

    >>> tuple(round(bound, 1) for bound in interval(10.0, 1000))
    (8.3, 12.0)
    """
    rate = error / 100
    middle = (rate + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images)
    half *= math.sqrt(rate * (1 - rate) / images + z * z / (4 * images**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """The runs by setting, in the order given, each with a label of its own."""
    together: dict[str, list[RunRecord]] = {}
    for run in runs:
        together.setdefault(repr(_setting(run)), []).append(run)
    groups = list(together.values())
    labels = [_method(group[0]) for group in groups]
    return [
        Group(group, label if labels.count(label) == 1 else f"{label} ({group[0].name})")
        for group, label in zip(groups, labels, strict=True)
    ]


def _setting(run: RunRecord) -> list[tuple[str, Any]]:
    return [
        *sorted((name, str(value)) for name, value in run.config.items() if name not in SEPARATE),
        ("data", run.data),
    ]


def _method(run: RunRecord) -> str:
    """The student, and how it learned."""
    config = run.config
    if run.teacher is None:
        return f"{run.student} alone"
    attention = str(config.get("attention", "activation"))
    used = {
        "AT": "activation" in attention,
        "gradient AT": config.get("gradient_beta") is not None,
        "F-ActT": config.get("full_activation") is not None,
        "flip symmetry": config.get("flip_symmetry") is not None,
        "min-l2": config.get("input_gradient_norm") is not None,
        "KD": config.get("kd_alpha") is not None,
    }
    return f"{run.student} with {' + '.join(name for name, is_used in used.items() if is_used)}"


def headline(groups: Sequence[Group]) -> str:
    """What was asked and what came out, in a sentence or two."""
    taught = [group for group in groups if not group.alone]
    alone = _baseline(groups)
    if not taught:
        return " ".join(_result(group) for group in groups)
    first = taught[0].first
    where = f"{first.final['test_images']:,} unseen test images of {first.data[0]}"
    if alone is None:
        told = "; ".join(f"{group.label} is wrong on {group.shown_error}" for group in taught)
        return f"Taught by {first.teacher}, {told} of {where}."
    told = ", ".join(
        f"{_way(group)} on {group.shown_error} ({_change(group, alone)})" for group in taught
    )
    return (
        f"Alone, {alone.first.student} is wrong on {alone.shown_error} of {where}; taught by "
        f"{first.teacher}, {told}."
    )


def _result(group: Group) -> str:
    run = group.first
    return (
        f"{group.label} is wrong on {group.shown_error} of {run.final['test_images']:,} unseen "
        f"test images of {run.data[0]} after {run.config['epochs']} epochs."
    )


def _way(group: Group) -> str:
    return group.label.removeprefix(f"{group.first.student} ")


def _change(group: Group, alone: Group) -> str:
    if alone.error == 0:
        return "alone it makes none"
    share = 100 * (group.error / alone.error - 1)
    return f"{abs(share):.0f} % {'fewer' if share <= 0 else 'more'} mistakes"


def _baseline(groups: Sequence[Group]) -> Group | None:
    """The student of the first distilled group, alone."""
    students = [group.first.student for group in groups if not group.alone]
    return next(
        (group for group in groups if group.alone and students[:1] == [group.first.student]), None
    )


@dataclass(frozen=True)
class Changes:
    """How a distilled student's answers differ from those it gives alone."""

    alone: Group
    taught: Group
    images: int
    mended: int
    """Wrong alone, right when taught."""
    broken: int
    """The other way round."""
    examples: list[tuple[int, bool]]
    """Test images whose maps were kept: their place among the examples, and whether mended."""


def changes(groups: Sequence[Group]) -> Iterator[Changes]:
    """Of each distilled group against the student alone, where both kept their answers."""
    alone = _baseline(groups)
    before = None if alone is None else alone.first.predictions
    for group in groups:
        after = group.first.predictions
        if group.alone or alone is None or before is None or after is None:
            continue
        was, now = (_right(predictions) for predictions in (before, after))
        if len(was) != len(now):
            continue
        changed = {int(index): bool(now[index]) for index in np.flatnonzero(was != now)}
        kept = group.first.attention
        indices = [] if kept is None else kept.examples.get("indices", np.zeros(0)).tolist()
        yield Changes(
            alone,
            group,
            len(was),
            mended=int((now & ~was).sum()),
            broken=int((was & ~now).sum()),
            examples=[
                (place, changed[index]) for place, index in enumerate(indices) if index in changed
            ],
        )


def _right(predictions: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = predictions["labels"] == predictions["predicted"]
    return right


def warnings_of(runs: Iterable[RunRecord]) -> Iterator[str]:
    """What someone should know before believing a run's figures."""
    for run in runs:
        for notice in run.record["data"].get("notices", ()):
            yield f"{run.name}: {notice}"
        if run.attention is None:
            yield f"{run.name} kept no attention maps (--probes), so none are shown of it"
        yield from _of_training(run)


def _of_training(run: RunRecord) -> Iterator[str]:
    best = run.record["best_on_validation"]
    last = float(run.final["validation_error"])
    if last - float(best["validation_error"]) > 2:
        yield (
            f"{run.name}: the last weights are worse on validation ({last:.1f} %) than those after "
            f"epoch {best['epoch']} ({best['validation_error']:.1f} %); train for fewer epochs, or "
            "with a lower rate"
        )
    waited = sum(row.get("seconds_waiting_for_data", 0.0) for row in run.metrics)
    seconds = float(run.record["seconds"])
    if seconds > 0 and waited > 0.03 * seconds:
        yield (
            f"{run.name} waited for data {100 * waited / seconds:.0f} % of its time; give it more "
            "--workers"
        )
    terms = run.metrics[-1]["terms"] if run.metrics else {}
    for name, value in terms.items():
        if value == 0 and any(row["terms"].get(name) for row in run.metrics[:-1]) is False:
            yield f"{run.name}: the term {name} was 0 throughout"
