"""measure speed on this machine: steps, whole runs, gradients, data loading, start-up"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import BenchmarkConfig
from attention_transfer.errors import InputError
from attention_transfer.files import write_text
from attention_transfer.terminal import escape_control_characters, print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.benchmark import Case, Document, Spread

EXAMPLES = (
    "benchmark step",
    "benchmark step --compile --pairs wrn-16-1:wrn-16-2 --json",
    "benchmark run --epochs 3 --out run.json",
    "benchmark gradient --repetitions 7",
    "benchmark import",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(BenchmarkConfig, positional=("what",))


def run(arguments: Namespace) -> int:
    """Run the benchmark, write its document, and print it."""
    config = config_from(arguments, BenchmarkConfig)
    _check_writable(config.out)
    loading("torch", "PyTorch")
    from attention_transfer.benchmark import Document, measure

    text = json.dumps(measure(config, _print_progress).as_json(), indent=2)
    document = Document.read(text)
    if config.out is not None:
        write_text(config.out, text + "\n")
    if arguments.json:
        print_json(json.loads(text))
    else:
        _print(document, config.out)
    return 0


def _check_writable(out: Path | None) -> None:
    """Check before the measurements, which may take hours, that the file can be written."""
    if out is None:
        return
    try:
        existed = out.exists()
        with out.open("a", encoding="utf-8"):
            pass
        if not existed:
            out.unlink()
    except (OSError, ValueError) as error:  # ValueError: the path holds a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot write to {out}: {reason}; choose another --out") from None


def _print_progress(line: str) -> None:
    print(escape_control_characters(line), file=sys.stderr, flush=True)


def _print(document: "Document", out: Path | None) -> None:
    """Print a table for each case, the summary and the notes."""
    where = console(False)
    for name, case in document.measured.items():
        print_table(where, [name, "median", "quartiles"], list(_rows(case)))
        print_line(where, "")
    for ratio, value in document.ratios.items():
        print_line(where, f"{ratio} {value:.3f}")
    for note in document.notes:
        print_line(where, note)
    if out is not None:
        print_line(where, f"written to {out}")


def _rows(case: "Case") -> Iterator[list[str]]:
    def spreads(values: "dict[str, Spread]", unit: str, digits: int) -> Iterator[list[str]]:
        for name, spread in values.items():
            quartiles = f"{spread.lower_quartile:.{digits}f} - {spread.upper_quartile:.{digits}f}"
            yield [name, f"{spread.median:.{digits}f}{unit}", quartiles]

    yield from spreads(case.milliseconds, " ms", 1)
    yield from spreads(case.images_per_second, " images/s", 0)
    yield from spreads(case.ratios, "", 3)
    for name, megabytes in case.peak_megabytes.items():
        yield [f"peak memory, {name}", f"{megabytes:.0f} MB", ""]
    for name, value in case.figures.items():
        yield [name, "-" if value is None else f"{value:.4g}", ""]
