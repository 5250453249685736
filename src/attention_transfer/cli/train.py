"""train one network alone, as a teacher or a baseline"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.runs import begin_run
from attention_transfer.config import RunConfig, TrainingConfig
from attention_transfer.errors import InputError

EXAMPLES = (
    "train --model wrn-16-2 --epochs 22 --out runs/teacher",
    "train --model wrn-16-1 --data cifar10 --download --schedule step --epochs 200 "
    "--lr 0.1 --batch-size 128 --no-nesterov",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(TrainingConfig)
    parser.add_run()


def run(arguments: Namespace) -> int:
    """Train the network, and print its results."""
    if "student" not in arguments and "config" not in arguments:
        raise InputError("model is missing: the network to train, such as --model wrn-16-2")
    return begin_run(config_from(arguments, RunConfig), arguments)
