"""What the page plots and tells of each epoch: errors, agreement of attention, every term."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from attention_transfer.report.groups import Group
from attention_transfer.report.plots import DASHES, SERIES, Line, curves
from attention_transfer.terminal import escape_control_characters

__all__ = ["attention_in_numbers", "learning_curves"]


def learning_curves(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Learning curves: errors, agreement of attention, and every term."""
    errors = {
        title: [
            Line(group.label, number, *_means(group, key)) for number, group in enumerate(groups)
        ]
        for title, key in (("validation", "validation_error"), ("training", "train_error"))
    }
    yield _plot("Errors by epoch", errors, "error, %")
    agreement = {
        point: [
            Line(group.label, number, *_followed(group, point, "cosine"))
            for number, group in enumerate(groups)
            if _followed(group, point, "cosine")[0]
        ]
        for point in dict.fromkeys(point for group in groups for point in _points(group))
    }
    agreement = {point: lines for point, lines in agreement.items() if lines}
    if agreement:
        yield _plot("Agreement of student and teacher by epoch", agreement, "cosine")
    names = list(dict.fromkeys(name for group in groups for name in _terms(group)))
    terms = {
        group.label: [Line(name, names.index(name), *_term(group, name)) for name in _terms(group)]
        for group in groups
        if len(_terms(group)) > 1
    }
    if terms:
        yield _plot("Terms of the loss by epoch, weighted as they are summed", terms, "loss")


def _plot(title: str, panels: dict[str, list[Line]], y: str) -> dict[str, Any]:
    """A figure, the key to its colours, and its last values for those who cannot see it."""
    keys = {
        line.label: (line.series % SERIES, line.series // SERIES % DASHES)
        for lines in panels.values()
        for line in lines
    }
    shown = {escape_control_characters(name): lines for name, lines in panels.items()}
    return {
        "title": title,
        "svg": Markup(curves(shown, x="epoch", y=y)),
        "keys": list(keys.items()),
        "last": [
            (name, line.label, line.y[-1])
            for name, lines in panels.items()
            for line in lines
            if line.y
        ],
    }


def _means(group: Group, key: str) -> tuple[list[float], list[float]]:
    """A figure of the epochs, as the mean of the group's runs."""
    length = min(len(run.metrics) for run in group.runs)
    rows = [[getattr(run.metrics[epoch], key) for run in group.runs] for epoch in range(length)]
    return list(range(1, length + 1)), [float(np.mean(row)) for row in rows]


def _points(group: Group) -> list[str]:
    return list(
        dict.fromkeys(point for run in group.runs for row in run.metrics for point in row.probes)
    )


def _followed(group: Group, point: str, measure: str) -> tuple[list[float], list[float]]:
    """A measure of the probes' attention at the epochs where it was looked at; the mean of the
    group's runs.
    """
    found: dict[float, list[float]] = {}
    for row in (row for run in group.runs for row in run.metrics):
        measures = row.probes.get(point, {})
        if measure in measures:
            found.setdefault(float(row.epoch), []).append(float(measures[measure]))
    return list(found), [float(np.mean(values)) for values in found.values()]


def _terms(group: Group) -> list[str]:
    return list(group.first.metrics[0].terms) if group.first.metrics else []


def _term(group: Group, name: str) -> tuple[list[float], list[float]]:
    """A term by epoch; the mean of the group's runs."""
    length = min(len(run.metrics) for run in group.runs)
    rows = [
        [float(run.metrics[epoch].terms[name]) for run in group.runs] for epoch in range(length)
    ]
    return list(range(1, length + 1)), [float(np.mean(row)) for row in rows]


_MEASURES = (
    "cosine",
    "rank_correlation",
    "student_entropy",
    "teacher_entropy",
    "inside",
    "pointing",
)


def attention_in_numbers(group: Group) -> Iterator[dict[str, Any]]:
    """What the group's attention is like at the end, point by point."""
    for point in _points(group):
        last = {name: _followed(group, point, name)[1][-1:] for name in _MEASURES}
        if any(last.values()):
            yield {
                "label": group.label,
                "point": point,
                **{name: f"{value[0]:.2f}" if value else "–" for name, value in last.items()},
            }
