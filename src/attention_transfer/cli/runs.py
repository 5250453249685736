"""The output of train, distill and resume: progress, then the results."""

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import RunConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.runs import Run
    from attention_transfer.training import RunProgress

__all__ = ["begin_run", "report_run"]


def begin_run(config: RunConfig, arguments: Namespace) -> int:
    """Train what a configuration describes, as the command's other flags say, and report it."""
    loading("torch", "PyTorch")
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
        print_json({"folder": str(finished.folder), "report": page, **values})
        return 0
    row = [
        record.student.name,
        f"{record.final.test_error:.2f}",
        f"{record.final.validation_error:.2f}",
        f"{record.student.parameters:,}",
        f"{record.seconds:.0f}",
    ]
    columns = ["network", "test error %", "validation error %", "parameters", "seconds"]
    print_table(where, columns, [row])
    print_line(where, f"the run is in {finished.folder}")
    if page is not None:
        print_line(where, f"report: {page}")
    return 0
