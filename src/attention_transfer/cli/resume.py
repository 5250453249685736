"""resume an interrupted run from its last checkpoint"""

from argparse import Namespace
from pathlib import Path

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.runs import report_run
from attention_transfer.waiting import loading

EXAMPLES = (
    "resume runs/distill-20260101-120000",
    "resume runs/distill-20260101-120000 --workers 0",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=None,
        help="processes that decode image files; default: as many as the run began with",
    )
    parser.add_allow_changes()
    parser.add_trust()
    parser.add_json()


def run(arguments: Namespace) -> int:
    """Resume the run, and print its results."""
    folder = arguments.folder
    loading("torch", "PyTorch")
    from attention_transfer import api

    return report_run(
        lambda progress: api.resume(
            folder,
            progress=progress,
            workers=arguments.workers,
            allow_changes=arguments.allow_changes,
        ),
        arguments.json,
    )
