"""evaluate a trained network on a data set: error, top-5 error, calibration, confusion"""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import EvaluateConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.runs.confusion import Confusion

MOST_CLASSES_SHOWN = 20
"""Classes of a matrix that still fits a terminal."""

MOST_CLASSES_WRITTEN = 100
"""Classes of a matrix that is written whole with --json."""

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
    from attention_transfer.training import evaluate_model

    result = evaluate_model(config)
    if result is None:  # another process prints
        return 0
    model, data, evaluation = result
    for notice in (*data.notices, *model.notices):
        print_line(console(True), notice)
    if arguments.json:
        named = {"model": model.name, "data": data.name, "split": config.split}
        print_json({**named, **vars(evaluation), **_confusion(evaluation.confusion)})
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
    confusion = evaluation.confusion
    if confusion is not None and confusion.classes <= MOST_CLASSES_SHOWN:
        rows = [
            [name, *map(str, row)]
            for name, row in zip(data.class_names, confusion.matrix(), strict=True)
        ]
        print_table(where, ["true \\ predicted", *data.class_names], rows, title="")
    return 0


def _confusion(confusion: "Confusion | None") -> dict[str, Any]:
    """Return the confusion for --json: the matrix; of many classes its entries above 0."""
    if confusion is None:
        return {"confusion": None}
    if confusion.classes <= MOST_CLASSES_WRITTEN:
        return {"confusion": confusion.matrix().tolist()}
    return {"confusion": None, "confusion_counts": confusion.counts.tolist()}
