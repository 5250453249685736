"""The report: one HTML page that needs nothing but itself, made of runs' records."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attention_transfer.errors import InputError
from attention_transfer.report.commands import command_of
from attention_transfer.report.comparison import Changes, changes, headline
from attention_transfer.report.confusion import confusion
from attention_transfer.report.figures import attention_in_numbers, learning_curves
from attention_transfer.report.gallery import disagreements, pictures_of_changes
from attention_transfer.report.groups import Group, grouped, interval
from attention_transfer.report.viewer import viewer
from attention_transfer.report.warnings import warnings_of
from attention_transfer.runs import Run, read_runs
from attention_transfer.runs.record import NetworkRecord
from attention_transfer.terminal import escape_control_characters

__all__ = ["write_report"]


class _InFolder(Protocol):
    """A run, such as ``at.Run``."""

    @property
    def folder(self) -> Path: ...


AnyRun = str | os.PathLike[str] | _InFolder


def write_report(runs: AnyRun | Sequence[AnyRun], out: str | Path | None = None) -> Path:
    """Writes one self-contained page about finished runs.

    It reads records and raw maps alone: nothing is trained, loaded or fetched.

    Args:
        runs: folders of finished runs, or of demos; or runs as ``at.distill`` gives them.
        out: the file; by default ``report.html`` in the run's folder, or where several runs lie
            together.

    Returns:
        The page's path.

    Raises:
        InputError: a folder that holds no finished run, or a page that cannot be written.
    """
    given = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    folders = [_folder(run) for run in given]
    if not folders:
        raise InputError("got no runs, expected at least one run's folder")
    text = _rendered(read_runs(folders))
    path = Path(out) if out else _common(folders) / "report.html"
    if path.is_dir():
        raise InputError(
            f"cannot write {path}: it is a folder; give a file, such as {path / 'report.html'}"
        )
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from None
    return path


def _folder(run: AnyRun) -> Path:
    return Path(run) if isinstance(run, str | os.PathLike) else run.folder


def _common(runs: Sequence[Path]) -> Path:
    """The folder of a single run, or the one in which several are."""
    if len(runs) == 1:
        return runs[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in runs]))


def _rendered(runs: Sequence[Run]) -> str:
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
        nonce=secrets.token_urlsafe(16),
        version=version("attention-transfer"),
        style=_file(environment, "report.css"),
        script=_file(environment, "report.js"),
    )


def _file(environment: Environment, name: str) -> Markup:
    """One of our own files, as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that were judged on the same test images of the same classes, together."""
    sets: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        sets.setdefault((run.test_set, *run.class_names), []).append(run)
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
    runs: list[Run]
    warnings: list[str]
    plots: list[dict[str, Any]]
    viewer: dict[str, Any] | None
    disagreements: list[dict[str, Any]]
    changes: list[tuple[Changes, list[dict[str, Any]]]]
    agreement: list[dict[str, Any]]
    confusion: list[dict[str, Any]]
    commands: list[tuple[str, str]]


def _section(number: int, runs: Sequence[Run]) -> _Section:
    groups = grouped(runs)
    names = runs[0].class_names
    return _Section(
        key=f"data-{number}",
        name=runs[0].record.data.name,
        headline=headline(groups),
        classes=len(names),
        groups=groups,
        rows=[*_teacher_rows(groups), *(_row(group) for group in groups)],
        runs=list(runs),
        warnings=list(warnings_of(groups)),
        plots=list(learning_curves(groups)),
        viewer=viewer(groups, [escape_control_characters(name) for name in names]),
        disagreements=disagreements(groups, names),
        changes=[(found, pictures_of_changes(found, names)) for found in changes(groups)],
        agreement=[row for group in groups for row in attention_in_numbers(group)],
        confusion=[confusion(group, names) for group in groups],
        commands=[(run.name, command_of(_as_run(run))) for run in runs],
    )


def _as_run(run: Run) -> dict[str, Any]:
    """The configuration with the precision that auto meant then."""
    return run.config.model_dump(mode="json") | {"precision": run.record.precision}


def _teacher_rows(groups: Sequence[Group]) -> Iterator[dict[str, str]]:
    """A line for each teacher whose own error is known, unless it is one of the runs."""
    shown = {group.first.record.student.weights_fingerprint for group in groups}
    for group in groups:
        teacher = group.first.record.teacher
        if teacher is None or teacher.weights_fingerprint in shown:
            continue
        shown.add(teacher.weights_fingerprint)
        error = teacher.test_error
        images = group.first.record.final.test_images
        low, high = (None, None) if error is None else interval(error, images)
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


def _row(group: Group) -> dict[str, str]:
    """A line of the table of runs."""
    run = group.first
    seconds = np.mean([found.record.seconds for found in group.runs])
    rate = np.mean([found.record.images_per_second for found in group.runs])
    return {
        "label": group.label,
        "teacher": group.teacher or "–",
        "error": group.shown_error,
        "spread": group.spread,
        **_costs(run.record.student),
        "size": "–" if run.model_bytes is None else f"{run.model_bytes / 1e6:.2f} MB",
        "epochs": str(run.config.epochs),
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
