"""The report: one HTML page that needs nothing but itself, made of runs' records."""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attention_transfer.errors import InputError
from attention_transfer.report.commands import command_of
from attention_transfer.report.comparison import (
    Changes,
    Group,
    changes,
    grouped,
    headline,
    interval,
    warnings_of,
)
from attention_transfer.report.confusion import confusion
from attention_transfer.report.gallery import disagreements, pictures_of_changes
from attention_transfer.report.plots import SERIES, Line, curves
from attention_transfer.report.records import RunRecord, read_runs
from attention_transfer.report.viewer import viewer
from attention_transfer.terminal import printable

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes one self-contained page about finished runs.

    It reads records and raw maps alone: nothing is trained, loaded or fetched.

    Args:
        runs: folders of finished runs, or of demos.
        out: the file; by default ``report.html`` in the run's folder, or where several runs lie
            together.

    Returns:
        The page's path.

    Raises:
        InputError: a folder that holds no finished run, or a page that cannot be written.
    """
    if not runs:
        raise InputError("got no runs, expected at least one run's folder")
    found = read_runs(runs)
    path = out or _common(runs) / "report.html"
    text = _rendered(found)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None
    return path


def _common(runs: Sequence[Path]) -> Path:
    """The folder of a single run, or the one in which several are."""
    if len(runs) == 1:
        return runs[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in runs]))


def _rendered(runs: Sequence[RunRecord]) -> str:
    environment = Environment(
        loader=PackageLoader("attention_transfer.report", "page_files"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = printable
    sections = [_section(number, runs) for number, runs in enumerate(_by_data(runs))]
    return environment.get_template("report.html.j2").render(
        sections=sections,
        nonce=secrets.token_urlsafe(16),
        version=version("attention-transfer"),
        style=_file(environment, "report.css"),
        script=_file(environment, "report.js"),
    )


def _file(environment: Environment, name: str) -> Markup:
    """One of our own files, as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _by_data(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that were judged on the same test images, together."""
    sets: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        sets.setdefault(run.data, []).append(run)
    return list(sets.values())


@dataclass(frozen=True)
class _Section:
    """All of the page that is about one data set."""

    key: str
    name: str
    headline: str
    classes: int
    groups: list[Group]
    rows: list[dict[str, str]]
    runs: list[RunRecord]
    warnings: list[str]
    plots: list[dict[str, Any]]
    viewer: dict[str, Any] | None
    disagreements: list[dict[str, Any]]
    changes: list[tuple[Changes, list[dict[str, Any]]]]
    agreement: list[dict[str, Any]]
    confusion: list[dict[str, Any]]
    commands: list[tuple[str, str]]


def _section(number: int, runs: Sequence[RunRecord]) -> _Section:
    groups = grouped(runs)
    names = runs[0].class_names
    return _Section(
        key=f"data-{number}",
        name=runs[0].data[0],
        headline=headline(groups),
        classes=len(names),
        groups=groups,
        rows=[*_teacher_rows(groups), *(_row(group) for group in groups)],
        runs=list(runs),
        warnings=list(warnings_of(runs)),
        plots=list(_plots(groups)),
        viewer=viewer(groups, [printable(name) for name in names]),
        disagreements=disagreements(groups, names),
        changes=[(found, pictures_of_changes(found, names)) for found in changes(groups)],
        agreement=[row for group in groups for row in _agreement(group)],
        confusion=[confusion(group.label, group.first.final, names) for group in groups],
        commands=[(run.name, command_of(run.config)) for run in runs],
    )


def _teacher_rows(groups: Sequence[Group]) -> Iterator[dict[str, str]]:
    """A line for each teacher whose own error is known, unless it is one of the runs."""
    shown = {group.first.record["student"].get("weights_fingerprint") for group in groups}
    for group in groups:
        teacher = group.first.record["teacher"]
        if teacher is None or teacher["weights_fingerprint"] in shown:
            continue
        shown.add(teacher["weights_fingerprint"])
        error = teacher.get("test_error")
        images = int(group.first.final["test_images"])
        low, high = (None, None) if error is None else interval(error, images)
        yield {
            "label": f"teacher: {teacher['name']}",
            "teacher": "–",
            "error": "–" if error is None else f"{error:.1f} %",
            "spread": "–" if error is None else f"{low:.1f} to {high:.1f}",
            **_costs(teacher),
            **dict.fromkeys(("size", "epochs", "time", "rate"), "–"),
        }


def _costs(network: Mapping[str, Any]) -> dict[str, str]:
    return {
        "parameters": f"{network['parameters']:,}",
        "flops": f"{network['flops'] / 1e6:,.0f} M",
    }


def _row(group: Group) -> dict[str, str]:
    """A line of the table of runs."""
    run = group.first
    seconds = np.mean([float(found.record["seconds"]) for found in group.runs])
    rate = np.mean([float(found.record["images_per_second"]) for found in group.runs])
    return {
        "label": group.label,
        "teacher": run.teacher or "–",
        "error": group.shown_error,
        "spread": group.spread,
        **_costs(run.record["student"]),
        "size": "–" if run.bytes is None else f"{run.bytes / 1e6:.2f} MB",
        "epochs": str(run.config["epochs"]),
        "time": _duration(float(seconds)),
        "rate": f"{rate:,.0f}",
    }


def _duration(seconds: float) -> str:
    """A time as people say it.

    >>> _duration(48.2), _duration(200), _duration(8000)
    ('48 s', '3 min 20 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _plots(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
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
    keys = {line.label: line.series % SERIES for lines in panels.values() for line in lines}
    shown = {printable(name): lines for name, lines in panels.items()}
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
    rows = [[float(run.metrics[epoch][key]) for run in group.runs] for epoch in range(length)]
    return list(range(1, length + 1)), [float(np.mean(row)) for row in rows]


def _points(group: Group) -> list[str]:
    kept = group.first.attention
    return [] if kept is None else kept.points


def _followed(group: Group, point: str, measure: str) -> tuple[list[float], list[float]]:
    """A measure of the probes' attention, at the epochs where it was looked at."""
    found = [
        (float(row["epoch"]), float(row["probes"][point][measure]))
        for row in group.first.metrics
        if measure in row.get("probes", {}).get(point, {})
    ]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _terms(group: Group) -> list[str]:
    return list(group.first.metrics[0]["terms"]) if group.first.metrics else []


def _term(group: Group, name: str) -> tuple[list[float], list[float]]:
    values = [float(row["terms"][name]) for row in group.first.metrics]
    return list(range(1, len(values) + 1)), values


_MEASURES = (
    "cosine",
    "rank_correlation",
    "student_entropy",
    "teacher_entropy",
    "inside",
    "pointing",
)


def _agreement(group: Group) -> Iterator[dict[str, Any]]:
    """What the group's attention is like at the end, point by point."""
    for point in _points(group):
        last = {name: _followed(group, point, name)[1][-1:] for name in _MEASURES}
        if any(last.values()):
            yield {
                "label": group.label,
                "point": point,
                **{name: f"{value[0]:.2f}" if value else "–" for name, value in last.items()},
            }
