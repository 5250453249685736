"""The tables of a study, in Markdown and as plain cells."""

import math
from collections.abc import Iterator, Sequence

from attention_transfer.config.studies import PaperFigure
from attention_transfer.experiments.study.results import ArmResults, RowResults, StudyResults

__all__ = ["COLUMNS", "MARKS", "explanation", "markdown", "row_title", "table_rows"]

COLUMNS = ("arm", "n", "mean", "median", "std", "paper", "compared, seed by seed")

MARKS = {
    "C": "confirmed in the authors' code or an independent transcription",
    "M": "remembered, not confirmed",
}


def markdown(results: StudyResults) -> str:
    """Return the tables of a study as Markdown: errors are in percent."""
    study, done = results.study, len(results.ended)
    lines = [f"# {study.title}", ""]
    if study.note:
        lines += [study.note, ""]
    lines += [
        f"Study {study.name}: {done} of {len(results.plan.all_runs)} runs have ended. "
        + explanation(results),
        "",
    ]
    if len(results.rows) > 1:
        lines += [*_overview(results), ""]
    for row in results.rows:
        lines += [f"## {row_title(row)}", "", *_table(COLUMNS, table_rows(row)), ""]
    if results.plan.selections:
        lines += ["## Chosen on validation images", "", *_selections(results), ""]
    marks = sorted({figure.mark for figure in _figures(results)})
    lines += [f"Mark {mark} at the paper's figures: {MARKS[mark]}." for mark in marks]
    return "\n".join(lines).rstrip() + "\n"


def explanation(results: StudyResults) -> str:
    """Return what the figures of the tables are."""
    return (
        f"{_either(results.splits).capitalize()} error in percent over seeds; std is the sample "
        "standard deviation. Differences are paired by seed, in percentage points, with 95 % "
        "intervals by Student's t; a gain or loss is established if the interval excludes 0."
    )


def row_title(row: RowResults) -> str:
    """Return pair, length and data set of a row, what was run, and what its errors are of."""
    run = f" ({' or '.join(map(str, row.steps))} steps run)" if row.steps else ""
    return f"{_place(row.data, row.pair, row.variant)}{run}: {_either(row.splits)} error"


def _place(data: str, pair: str, variant: str) -> str:
    return ", ".join(part for part in (pair, variant, data) if part)


def _either(splits: Sequence[str]) -> str:
    return " or ".join(splits) or "test"


def table_rows(row: RowResults) -> list[list[str]]:
    """Return the cells of a row's arms, and of its teacher, in the order of ``COLUMNS``."""
    lines = []
    for arm in row.arms:
        compared = [
            f"vs {one.baseline}: {one.difference.sentence}"
            for one in row.comparisons
            if one.arm == arm.arm
        ]
        name = _marked(arm.arm, arm.split, row)
        lines.append([name, *_statistics(arm), paper_text(arm.paper), "; ".join(compared)])
    if row.teacher is not None or row.teacher_paper is not None:
        name = "teacher" if row.teacher is None else _marked("teacher", row.teacher.split, row)
        lines.append([name, "", _teacher(row), "", "", paper_text(row.teacher_paper), ""])
    return lines


def _marked(name: str, split: str, row: RowResults) -> str:
    """Return a name in a row's table, with its split where that is not all the row's."""
    return name if row.splits == (split,) else f"{name} ({split} error)"


def _teacher(row: RowResults) -> str:
    return "" if row.teacher is None else f"{row.teacher.error:.2f}"


def _statistics(arm: ArmResults) -> list[str]:
    summary = arm.summary
    n = 0 if summary is None else summary.n
    count = str(n) if n == arm.planned else f"{n} of {arm.planned}"
    if arm.diverged:
        count += f", {len(arm.diverged)} diverged"
    if summary is None:
        return [count, "", "", ""]
    spread = "" if summary.std is None else f"{summary.std:.2f}"
    mean = f"{summary.mean:.2f}"
    if arm.paper is not None and arm.paper.top5_error is not None and arm.top5_errors:
        mean += f" / {sum(arm.top5_errors.values()) / len(arm.top5_errors):.2f}"
    return [count, mean, f"{summary.median:.2f}", spread]


def paper_text(figure: PaperFigure | None) -> str:
    """Return a figure of the paper with its mark."""
    if figure is None:
        return ""
    top5 = "" if figure.top5_error is None else f" / {figure.top5_error:g}"
    return f"{figure.error:g}{top5} ({figure.mark})"


def _overview(results: StudyResults) -> list[str]:
    """Return a table in the paper's form: a line for each pair, a column for each arm."""
    arms = list(results.study.arms)
    lines = []
    for row in results.rows:
        of_arm = {one.arm: _marked(_short(one), one.split, row) for one in row.arms}
        cells = [of_arm.get(arm, "") for arm in arms]
        teacher = "" if row.teacher is None else _marked(_teacher(row), row.teacher.split, row)
        lines.append([row_title(row), *cells, teacher])
    return _table(["", *arms, "teacher"], lines)


def _short(arm: ArmResults) -> str:
    summary = arm.summary
    if summary is None:
        return "diverged" if arm.diverged else ""
    return f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}")


def _selections(results: StudyResults) -> list[str]:
    lines = []
    for selection in results.plan.selections:
        found = selection.errors.items()
        errors = ", ".join(f"{value}: {_or_diverged(error)}" for value, error in found)
        chosen = selection.chosen or ("none" if selection.diverged else "not yet")
        lines.append([_place(*selection.row), selection.arm, selection.setting, errors, chosen])
    return _table(["row", "arm", "setting", "validation error %", "chosen"], lines)


def _or_diverged(error: float) -> str:
    return "diverged" if math.isinf(error) else f"{error:.2f}"


def _figures(results: StudyResults) -> Iterator[PaperFigure]:
    for row in results.rows:
        for figure in (row.teacher_paper, *(arm.paper for arm in row.arms)):
            if figure is not None:
                yield figure


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)]
