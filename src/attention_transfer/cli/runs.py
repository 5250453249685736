"""The output of train, distill and resume: progress, then the results."""

import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.cli.seeds import begin_seeds, parsed_seeds
from attention_transfer.config import RunConfig
from attention_transfer.factories import OBJECT
from attention_transfer.terminal import print_line
from attention_transfer.trust import factories_in, trust_flags
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.benchmark.dry_run import DryRun
    from attention_transfer.runs import Run
    from attention_transfer.runs.record import FinalMetrics, RunRecord
    from attention_transfer.training import RunProgress

__all__ = ["begin_run", "report_dry_run", "report_run"]


def begin_run(config: RunConfig, arguments: Namespace) -> int:
    """Train what a configuration describes, as the command's other flags say, and report it."""
    if "seeds" in arguments:
        parsed_seeds(arguments.seeds)
    loading("torch", "PyTorch")
    if arguments.dry_run:
        return report_dry_run(config, arguments.json)
    if "seeds" in arguments:
        return begin_seeds(config, arguments)
    from attention_transfer import api

    return report_run(
        lambda progress: api.run(
            config,
            progress,
            resume_or_start=arguments.resume_or_start,
            allow_changes=arguments.allow_changes,
        ),
        arguments.json,
    )


def report_run(train: "Callable[[RunProgress], Run]", as_json: bool) -> int:
    """Train, print the run's figures and its folder, and return the exit code.

    Args:
        train: trains the run, and reports to the progress it is passed.
        as_json: print one JSON document instead of a table.
    """
    from accelerate import PartialState

    from attention_transfer.report.verdict import verdict
    from attention_transfer.training import RunProgress

    where = console(as_json)
    finished = train(RunProgress(where))
    if not PartialState().is_main_process:
        return 0
    record = finished.record
    written = finished.folder / "report.html"
    page = str(written) if written.is_file() else None
    if as_json:
        values = record.model_dump(mode="json")
        judged = asdict(verdict(finished))
        print_json({"folder": str(finished.folder), "report": page, "verdict": judged, **values})
        return 0
    rows = [_row(record, record.student.name, record.final)]
    if finished.config.baseline and finished.alone.is_finished:
        alone = finished.alone.record
        rows.append(_row(alone, f"{alone.student.name} alone", alone.final))
    if record.ema is not None:
        rows.append(_row(record, f"{record.student.name}, averaged weights", record.ema.final))
    columns = ["network", "test error %", "validation error %", "parameters", "seconds"]
    print_table(where, columns, rows)
    for sentence in verdict(finished).sentences:
        print_line(where, sentence)
    print_line(where, f"the run is in {finished.folder}")
    if record.ema is not None:
        print_line(where, f"averaged weights: {finished.averaged_folder}")
    if page is not None:
        print_line(where, f"report: {page}")
    for line in _uses(finished):
        print_line(where, line)
    return 0


def _uses(finished: "Run") -> list[str]:
    """Return the lines that use the trained network."""
    student = finished.config.student
    if student.startswith(OBJECT):
        return []  # no file says how to build it
    flags = trust_flags(factories_in({"student": student}))
    folder = str(finished.folder)
    predict = shlex.join(["attention-transfer", "predict", folder, "IMAGE", *flags])
    export = shlex.join(["attention-transfer", "export", folder, *flags])
    trust = f", trust={tuple(flags[1::2])!r}" if flags else ""
    return [
        f"classify images: {predict}",
        f"in Python: at.load({folder!r}{trust}).predict('IMAGE')[0].label",
        f"for other software: {export}",
    ]


def _row(record: "RunRecord", name: str, figures: "FinalMetrics") -> list[str]:
    return [
        name,
        "–" if figures.test_error is None else f"{figures.test_error:.2f}",
        f"{figures.validation_error:.2f}",
        f"{record.student.parameters:,}",
        f"{record.seconds:.0f}",
    ]


def report_dry_run(config: RunConfig, as_json: bool) -> int:
    """Measure a few steps of a run, print what the whole run would take, and write nothing.

    Args:
        config: of the run.
        as_json: print one JSON document instead of a table.
    """
    from attention_transfer.benchmark.dry_run import dry_run
    from attention_transfer.training import RunProgress

    where = console(as_json)
    plan = dry_run(config, RunProgress(where))
    if plan is None:  # another process prints
        return 0
    if as_json:
        print_json({**asdict(plan), "seconds": plan.seconds})
        return 0
    rows = [
        [one["role"], one["name"], f"{one['parameters']:,}", f"{one['flops'] / 1e9:.3g}"]
        for one in plan.networks
    ]
    print_line(where, "")
    print_table(where, ["", "network", "parameters", "GFLOPs an image"], rows)
    for line in ("", *_plan_lines(plan)):
        print_line(where, line)
    return 0


def _plan_lines(plan: "DryRun") -> Iterator[str]:
    """Yield what a run would take, line by line."""
    yield (
        f"a step takes {plan.seconds_a_step:.3g} s (median of {plan.steps_timed}) and at most "
        f"{plan.peak_megabytes:,.0f} MB of memory in each process"
    )
    parts = {
        "training": plan.seconds_training,
        "evaluation": plan.seconds_evaluating,
        "building the cache": plan.seconds_building_cache,
    }
    shares = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in parts.items() if seconds)
    yield f"{plan.steps:,} steps take about {_clock(plan.seconds)}: {shares}"
    if plan.cache is not None:
        sizes = {name: plan.cache[f"{name}bytes"] / 1e6 for name in ("", "missing_", "free_")}
        yield (
            f"the cache in {plan.cache['folder']} has {plan.cache['views']} views of each image, "
            f"{sizes['']:,.1f} MB, of which {sizes['missing_']:,.1f} MB are to be built; "
            f"{sizes['free_']:,.0f} MB are free"
        )
    yield "a dry run: nothing was written"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
