"""The report: one self-contained HTML page, written from the records of finished runs."""

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attention_transfer.errors import InputError
from attention_transfer.files import write_text
from attention_transfer.report.command_line import command_line
from attention_transfer.report.comparison import AnswerChanges, compare_answers, headline
from attention_transfer.report.confusion import confusion
from attention_transfer.report.gallery import changed_images, disagreements
from attention_transfer.report.groups import Group, group_runs, wilson_interval
from attention_transfer.report.learning_curves import attention_measures, learning_curves
from attention_transfer.report.viewer import viewer_data
from attention_transfer.report.warnings import run_warnings
from attention_transfer.runs import Run, read_runs
from attention_transfer.runs.record import NetworkRecord
from attention_transfer.terminal import escape_control_characters
from attention_transfer.version import __version__

__all__ = ["ReportTable", "write_report"]


class _HasFolder(Protocol):
    """A run with a folder, such as ``at.Run``."""

    @property
    def folder(self) -> Path: ...


AnyRun = str | os.PathLike[str] | _HasFolder


@dataclass(frozen=True)
class ReportTable:
    """A table at the beginning of the page, such as a row of a study's results."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    runs: AnyRun | Sequence[AnyRun],
    out: str | Path | None = None,
    tables: Sequence[ReportTable] = (),
    explanation: str = "",
) -> Path:
    """Write one self-contained HTML page about finished runs.

    Only records and raw maps are read; no network is loaded or run.

    Args:
        runs: folders of finished runs or of demos, or runs that ``at.train`` or ``at.distill``
            returned; one or several.
        out: the file; by default ``report.html`` in the run's folder, or for several runs in the
            folder that holds them.
        tables: shown at the beginning of the page.
        explanation: of their figures, shown below them.

    Returns:
        The page's path.

    Raises:
        InputError: a folder holds no finished run, or the page cannot be written.
    """
    several = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    folders = [_folder(run) for run in several]
    if not folders:
        raise InputError("got no runs, expected at least one run's folder")
    text = _render(read_runs(folders), tables, explanation)
    path = Path(out) if out else _common_folder(folders) / "report.html"
    if path.is_dir():
        raise InputError(
            f"cannot write {path}: it is a folder; give a file, such as {path / 'report.html'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None
    return path


def _folder(run: AnyRun) -> Path:
    return Path(run) if isinstance(run, str | os.PathLike) else run.folder


def _common_folder(runs: Sequence[Path]) -> Path:
    """Return the folder of a single run, or the folder that holds several."""
    if len(runs) == 1:
        return runs[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in runs]))


def _render(runs: Sequence[Run], tables: Sequence[ReportTable], explanation: str) -> str:
    environment = Environment(
        loader=PackageLoader("attention_transfer.report", "page_files"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = escape_control_characters
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    sections = [_section(number, runs) for number, runs in enumerate(_by_data(runs))]
    return environment.get_template("report.html.j2").render(
        sections=sections,
        tables=tables,
        explanation=explanation,
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        style=_file(environment, "report.css"),
        script=_file(environment, "report.js"),
    )


def _file(environment: Environment, name: str) -> Markup:
    """Return one of the page's own files, unescaped."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that were evaluated on the same test images of the same classes."""
    sets: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        sets.setdefault((run.test_set, *run.class_names), []).append(run)
    return list(sets.values())


@dataclass(frozen=True)
class _Section:
    """The part of the page about one data set."""

    key: str
    name: str
    headline: str
    split: str
    """The images that the networks were evaluated on: "test", or "validation" with --no-test."""
    classes: int
    groups: list[Group]
    rows: list[dict[str, str]]
    runs: list[Run]
    warnings: list[str]
    plots: list[dict[str, Any]]
    viewer: dict[str, Any] | None
    disagreements: list[dict[str, Any]]
    changes: list[tuple[AnswerChanges, dict[bool, list[dict[str, Any]]]]]
    measures: list[dict[str, Any]]
    confusion: list[dict[str, Any]]
    commands: list[tuple[str, str]]


def _section(number: int, runs: Sequence[Run]) -> _Section:
    groups = group_runs(runs)
    names = runs[0].class_names
    return _Section(
        key=f"data-{number}",
        name=runs[0].record.data.name,
        headline=headline(groups),
        split=runs[0].record.final.held_out.split,
        classes=len(names),
        groups=groups,
        rows=[*_teacher_rows(groups), *(row for group in groups for row in _rows(group))],
        runs=list(runs),
        warnings=list(run_warnings(groups)),
        plots=list(learning_curves(groups)),
        viewer=viewer_data(groups, [escape_control_characters(name) for name in names]),
        disagreements=disagreements(groups, names),
        changes=[(change, changed_images(change, names)) for change in compare_answers(groups)],
        measures=[row for group in groups for row in attention_measures(group)],
        confusion=[one for group in groups if (one := confusion(group, names)) is not None],
        commands=[(run.name, command_line(_resolved_settings(run))) for run in runs],
    )


def _resolved_settings(run: Run) -> dict[str, Any]:
    """Return the configuration with the precision that ``auto`` stood for."""
    return run.config.model_dump(mode="json") | {"precision": run.record.precision}


def _teacher_rows(groups: Sequence[Group]) -> Iterator[dict[str, str]]:
    """Yield a row for each teacher that is not itself one of the runs."""
    shown = {group.representative.record.student.weights_fingerprint for group in groups}
    for group in groups:
        teacher = group.representative.record.teacher
        if teacher is None or teacher.weights_fingerprint in shown:
            continue
        shown.add(teacher.weights_fingerprint)
        error = teacher.test_error
        images = group.representative.record.final.held_out.images
        low, high = (None, None) if error is None else wilson_interval(error, images)
        yield {
            "label": f"teacher: {teacher.name}",
            "teacher": "–",
            "error": "–" if error is None else f"{error:.1f} %",
            "spread": "–" if error is None else f"{low:.1f} to {high:.1f}",
            **_costs(teacher),
            **dict.fromkeys(("size", "epochs", "time", "rate"), "–"),
        }


def _costs(network: NetworkRecord) -> dict[str, str]:
    return {
        "parameters": f"{network.parameters:,}",
        "flops": f"{network.flops / 1e6:,.0f} M",
    }


def _rows(group: Group) -> Iterator[dict[str, str]]:
    """Yield a group's rows in the table of runs: its networks, and their averaged weights."""
    yield (row := _row(group))
    averages = [run.record.ema for run in group.runs]
    errors = [average.final.held_out.error for average in averages if average is not None]
    if len(errors) == len(group.runs):
        yield {
            **row,
            "label": f"{group.label}, averaged weights",
            "error": group.text_of(errors),
            "spread": group.spread_of(errors),
        }


def _row(group: Group) -> dict[str, str]:
    """Return the row of a group's networks."""
    run = group.representative
    seconds = np.mean([each.record.seconds for each in group.runs])
    rate = np.mean([each.record.images_per_second for each in group.runs])
    return {
        "label": group.label,
        "teacher": group.teacher or "–",
        "error": group.error_text,
        "spread": group.spread_text,
        **_costs(run.record.student),
        "size": "–" if run.model_bytes is None else f"{run.model_bytes / 1e6:.2f} MB",
        "epochs": str(run.record.trained_epochs),
        "time": _duration(float(seconds)),
        "rate": f"{rate:,.0f}",
    }


def _duration(seconds: float) -> str:
    """Return a time in words.

    >>> _duration(48.2), _duration(200), _duration(8000)
    ('48 s', '3 min 20 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
