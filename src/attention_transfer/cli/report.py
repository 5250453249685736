"""write one HTML page about runs: test errors, learning curves and attention maps"""

from argparse import Namespace
from pathlib import Path

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.output import console, print_json
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading, waiting_for

EXAMPLES = (
    "report runs/student",
    "report runs/alone runs/at runs/at-kd --out report.html",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="folders of finished runs"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=None,
        help="HTML file to write (default: report.html in the run's folder, or in the folder that "
        "holds all runs)",
    )
    parser.add_json()


def run(arguments: Namespace) -> int:
    """Write the page and print its path."""
    loading("jinja2", "Jinja")
    from attention_transfer.report.page import write_report

    with waiting_for("reading the runs"):
        page = write_report(arguments.runs, arguments.out)
    if arguments.json:
        runs = [str(folder) for folder in arguments.runs]
        print_json({"report": str(page), "bytes": page.stat().st_size, "runs": runs})
    else:
        print_line(console(False), f"report: {page}")
    return 0
