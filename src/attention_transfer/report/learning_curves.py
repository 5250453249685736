"""Figures of each epoch for the page: errors, attention measures and the terms of the loss."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from attention_transfer.drawing.curves import DASHES, SERIES, Line, draw_curves
from attention_transfer.report.groups import Group
from attention_transfer.terminal import escape_control_characters

__all__ = ["attention_measures", "learning_curves"]


def learning_curves(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Yield the plots of errors, of the agreement of attention maps, and of the loss's terms."""
    errors = {
        title: [
            Line(group.label, number, *_epoch_means(group, key))
            for number, group in enumerate(groups)
        ]
        for title, key in (("validation", "validation_error"), ("training", "train_error"))
    }
    averaged = [line for line in map(_average_line, range(len(groups)), groups) if line.x]
    if averaged:
        errors["validation, averaged weights"] = averaged
    yield _plot("Errors by epoch", errors, "error, %")
    points = dict.fromkeys(point for group in groups for point in _points(group))
    agreement = {point: _cosine_lines(groups, point) for point in points}
    agreement = {point: lines for point, lines in agreement.items() if lines}
    if agreement:
        yield _plot(
            "Cosine between the student's and the teacher's attention maps by epoch",
            agreement,
            "cosine",
        )
    names = list(dict.fromkeys(name for group in groups for name in _terms(group)))
    terms = {
        group.label: [
            Line(name, names.index(name), *_term_means(group, name)) for name in _terms(group)
        ]
        for group in groups
        if len(_terms(group)) > 1
    }
    if terms:
        yield _plot("Weighted terms of the loss by epoch", terms, "loss")


def _average_line(number: int, group: Group) -> Line:
    """Return the validation errors of a group's averaged weights; without points if it has none."""
    errors = [[row.ema["validation_error"] for row in run.metrics if row.ema] for run in group.runs]
    return Line(group.label, number, *_means(errors))


def _cosine_lines(groups: Sequence[Group], point: str) -> list[Line]:
    """Return the cosines at a point of all groups that measured it."""
    lines = [
        Line(group.label, number, *_measure_means(group, point, "cosine"))
        for number, group in enumerate(groups)
    ]
    return [line for line in lines if line.x]


def _plot(title: str, panels: dict[str, list[Line]], y: str) -> dict[str, Any]:
    """Return a plot, its legend, and its last values as text for screen readers."""
    legend = {
        line.label: (line.series % SERIES, line.series // SERIES % DASHES)
        for lines in panels.values()
        for line in lines
    }
    printable = {escape_control_characters(name): lines for name, lines in panels.items()}
    return {
        "title": title,
        "svg": Markup(draw_curves(printable, x="epoch", y=y)),
        "keys": list(legend.items()),
        "last": [
            (name, line.label, line.y[-1])
            for name, lines in panels.items()
            for line in lines
            if line.y
        ],
    }


def _epoch_means(group: Group, key: str) -> tuple[list[float], list[float]]:
    """Return the epochs, and a figure of each as the mean over the group's runs."""
    return _means([[float(getattr(row, key)) for row in run.metrics] for run in group.runs])


def _term_means(group: Group, name: str) -> tuple[list[float], list[float]]:
    """Return the epochs, and a term of the loss in each as the mean over the group's runs."""
    return _means([[row.terms[name] for row in run.metrics] for run in group.runs])


def _means(runs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return epochs from 1 and the means over runs, for as many epochs as all runs have."""
    means = [float(np.mean(values)) for values in zip(*runs, strict=False)]
    return list(range(1, len(means) + 1)), means


def _points(group: Group) -> list[str]:
    """Return the layer pairs, or attention points, that the group's runs measured."""
    rows = (row for run in group.runs for row in run.metrics)
    return list(dict.fromkeys(point for row in rows for point in row.probes))


def _measure_means(group: Group, point: str, measure: str) -> tuple[list[float], list[float]]:
    """Return the epochs at which attention was measured, and the means over the group's runs."""
    values: dict[float, list[float]] = {}
    for row in (row for run in group.runs for row in run.metrics):
        measures = row.probes.get(point, {})
        if measure in measures:
            values.setdefault(float(row.epoch), []).append(measures[measure])
    return list(values), [float(np.mean(each)) for each in values.values()]


def _terms(group: Group) -> list[str]:
    """Return the names of the loss's terms."""
    metrics = group.representative.metrics
    return list(metrics[0].terms) if metrics else []


_MEASURES = (
    "cosine",
    "rank_correlation",
    "student_entropy",
    "teacher_entropy",
    "inside",
    "pointing",
)


def attention_measures(group: Group) -> Iterator[dict[str, Any]]:
    """Yield the measures of the group's attention maps after the last epoch, point by point."""
    for point in _points(group):
        last = {name: _measure_means(group, point, name)[1][-1:] for name in _MEASURES}
        if any(last.values()):
            yield {
                "label": group.label,
                "point": point,
                **{name: f"{values[0]:.2f}" if values else "–" for name, values in last.items()},
            }
