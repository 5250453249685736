"""go on with an interrupted run, from the end of its last epoch"""

from argparse import Namespace
from pathlib import Path

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.runs import report_run

EXAMPLES = ("resume runs/distill-20260101-120000",)


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the run's folder")
    parser.add_json()


def run(arguments: Namespace) -> int:
    """Resumes and reports."""
    folder = arguments.folder
    from attention_transfer import api

    return report_run(lambda progress: api.resume(folder, progress), arguments.json)
