"""draw attention maps: activation or gradient attention, networks side by side"""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_notices, print_table
from attention_transfer.config import MapsConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from attention_transfer.viewing import MapsResult
    from attention_transfer.viewing.network_maps import Answer

EXAMPLES = (
    "maps timm:resnet34 --images photos",
    "maps runs/teacher runs/student --images cat.jpg 'photos/*.png' --points middle,top",
    "maps timm:resnet34 --images cat.jpg --points layer3.* --per-image --format pdf",
    "maps runs/student --images photos --attention gradient --out runs/gradient-maps",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to its parser."""
    parser.add_config(MapsConfig, positional=("models",))


def run(arguments: Namespace) -> int:
    """Compute and draw the maps, then print the predictions and the written files."""
    config = config_from(arguments, MapsConfig)
    loading("torch", "PyTorch")
    from attention_transfer.viewing import write_maps

    result = write_maps(config)
    print_notices(_notices(result))
    if arguments.json:
        print_json(_document(result))
        return 0
    stdout, grid = console(False), result.grid
    rows = [
        [image.name, *(str(results[index].answer or "-") for results in grid.results)]
        for index, image in enumerate(grid.images)
    ]
    print_table(stdout, ["image", *(network.name for network in grid.networks)], rows)
    print_line(stdout, "")
    for picture in result.pictures:
        print_line(stdout, f"picture: {picture}")
    print_line(stdout, f"raw maps: {result.raw}")
    return 0


def _notices(result: "MapsResult") -> list[str]:
    """Return the assumptions about networks, and the images that were skipped."""
    assumptions = [notice for network in result.grid.networks for notice in network.notices]
    return [*assumptions, *(f"skipped {path}: {reason}" for path, reason in result.unreadable)]


def _answer(answer: "Answer | None") -> dict[str, Any] | None:
    if answer is None:
        return None
    return {"class": answer.label, "name": answer.name, "probability": answer.probability}


def _document(result: "MapsResult") -> dict[str, Any]:
    """Return the JSON document that ``--json`` prints."""
    grid = result.grid
    return {
        "folder": str(result.folder),
        "files": [str(picture) for picture in result.pictures],
        "raw": str(result.raw),
        "networks": [
            {
                "name": network.name,
                "model": network.model,
                "points": [
                    {"point": point.name, "label": point.label, "map": list(attention.shape)}
                    for point, attention in zip(points, results[0].maps, strict=True)
                ],
            }
            for network, points, results in zip(
                grid.networks, grid.points, grid.results, strict=True
            )
        ],
        "images": [
            {
                "path": str(image),
                "predictions": [_answer(results[index].answer) for results in grid.results],
            }
            for index, image in enumerate(result.images)
        ],
        "unreadable": [{"path": str(path), "reason": reason} for path, reason in result.unreadable],
    }
