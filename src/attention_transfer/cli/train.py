"""train one network alone: a teacher, or a baseline"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.runs import report_run
from attention_transfer.config import RunConfig, TrainingConfig

EXAMPLES = (
    "train --model wrn-16-2 --epochs 22 --out runs/teacher",
    "train --model wrn-16-1 --data cifar10 --download --schedule step --epochs 200 "
    "--lr 0.1 --batch-size 128 --no-nesterov",
)


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_config(TrainingConfig)


def run(arguments: Namespace) -> int:
    """Trains and reports."""
    config = config_from(arguments, RunConfig)
    from attention_transfer import api

    return report_run(lambda progress: api.run(config, progress), arguments.json)
