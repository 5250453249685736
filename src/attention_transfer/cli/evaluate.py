"""evaluate a trained network on a data set: error, top-5 error, calibration, confusion"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import EvaluateConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

EXAMPLES = (
    "evaluate runs/student",
    "evaluate wrn-16-1@weights.safetensors --data cifar10 --json",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(EvaluateConfig, positional=("model",))


def run(arguments: Namespace) -> int:
    """Evaluate the network, and print the results."""
    config = config_from(arguments, EvaluateConfig)
    loading("torch", "PyTorch")
    from dataclasses import asdict

    from attention_transfer.training import evaluate_model

    result = evaluate_model(config)
    if result is None:  # another process prints
        return 0
    model, data, evaluation = result
    for notice in (*data.notices, *model.notices):
        print_line(console(True), notice)
    if arguments.json:
        named = {"model": model.name, "data": data.name, "split": config.split}
        print_json({**named, **asdict(evaluation)})
        return 0
    where = console(False)
    top5 = "" if evaluation.top5_error is None else f"{evaluation.top5_error:.2f}"
    print_table(
        where,
        ["network", "images", "error %", "top-5 error %", "calibration error %", "loss"],
        [
            [
                model.name,
                str(evaluation.images),
                f"{evaluation.error:.2f}",
                top5,
                f"{evaluation.calibration_error:.2f}",
                f"{evaluation.loss:.4f}",
            ]
        ],
        title=f"{data.name}, {config.split} images",
    )
    if 0 < len(evaluation.confusion) <= 20:
        rows = [
            [name, *map(str, row)]
            for name, row in zip(data.class_names, evaluation.confusion, strict=True)
        ]
        print_table(where, ["true \\ predicted", *data.class_names], rows, title="")
    return 0
