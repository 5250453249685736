"""classify images with a trained network: labels, probabilities, and where it looked"""

import itertools
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_notices, print_table
from attention_transfer.config import MapsConfig, PredictConfig, height_and_width, low_and_high
from attention_transfer.errors import InputError
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.inference import Prediction
    from attention_transfer.viewing import MapsResult

EXAMPLES = (
    "predict runs/student cat.jpg dog.jpg",
    "predict runs/student photos --top 5 --json",
    "predict runs/student 'photos/*.png' --maps",
    "predict timm:resnet34 photos",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to its parser."""
    parser.add_config(PredictConfig, positional=("model", "images"))


def run(arguments: Namespace) -> int:
    """Classify the images, and print the results."""
    config = config_from(arguments, PredictConfig)
    loading("torch", "PyTorch")
    from attention_transfer.inference import load
    from attention_transfer.inference.images import find_image_files

    size = None if config.image_size is None else height_and_width(config.image_size)
    classifier = load(config.model, image_size=size)
    paths = find_image_files(config.images)
    corrupt: dict[str, str] = {}
    predictions = classifier.predict(
        paths,
        names=[str(path) for path in paths],
        batch_size=config.batch_size,
        pixel_range=None if config.pixel_range is None else low_and_high(config.pixel_range),
        corrupt=corrupt,
    )
    if not predictions:
        path, reason = next(iter(corrupt.items()))
        raise InputError(f"{path} cannot be read: {reason}; give at least one intact image")
    skipped = [f"skipped {name}: {reason}" for name, reason in corrupt.items()]
    print_notices((*classifier.notices, *skipped))
    pictures = _maps(config).pictures if config.maps else []
    if arguments.json:
        print_json(_document(config, predictions, corrupt, pictures))
        return 0
    stdout = console(False)
    rows = []
    for one in predictions:
        classes = [(label, f"{100 * share:.1f} %") for label, share in one.top(config.top)]
        rows.append([one.image, *itertools.chain.from_iterable(classes)])
    headlines = ["image", *["label", "probability"] * config.top]
    print_table(stdout, headlines[: len(rows[0])], rows)
    for picture in pictures:
        print_line(stdout, f"picture: {picture}")
    return 0


def _document(
    config: PredictConfig,
    predictions: "list[Prediction]",
    corrupt: dict[str, str],
    pictures: list[Path],
) -> dict[str, Any]:
    """Return the JSON document that ``--json`` prints."""
    return {
        "model": config.model,
        "predictions": [
            {
                "image": one.image,
                "label": one.label,
                "probability": one.probability,
                "top": [
                    {"label": label, "probability": share} for label, share in one.top(config.top)
                ],
            }
            for one in predictions
        ],
        "unreadable": [{"image": name, "reason": reason} for name, reason in corrupt.items()],
        "pictures": [str(picture) for picture in pictures],
    }


def _maps(config: PredictConfig) -> "MapsResult":
    """Draw attention maps of the parts of the images that the network saw."""
    from attention_transfer.viewing import write_maps

    shared = {name: getattr(config, name) for name in ("image_size", "pixel_range", "out")}
    return write_maps(MapsConfig(models=(config.model,), images=config.images, crop=True, **shared))
