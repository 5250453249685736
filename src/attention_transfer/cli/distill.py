"""train a student to look where a teacher looks"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.runs import begin_run
from attention_transfer.config import DistillConfig

EXAMPLES = (
    "distill --teacher runs/teacher --student wrn-16-1",
    "distill --teacher runs/teacher --student wrn-16-1 --kd-alpha 0.9 --out runs/at-kd",
    "distill --teacher runs/teacher --student wrn-16-1 --dry-run",
    "distill --teacher runs/teacher --student nin-thin --pairs block2:group2,block3:group3",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(DistillConfig)
    parser.add_run()


def run(arguments: Namespace) -> int:
    """Train the student, and print its results."""
    return begin_run(config_from(arguments, DistillConfig), arguments)
