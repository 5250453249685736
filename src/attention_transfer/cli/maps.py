"""draw where networks look: activation or gradient attention, networks side by side"""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import MapsConfig
from attention_transfer.terminal import escape_control_characters, print_line

if TYPE_CHECKING:
    from attention_transfer.viewing import MapsResult
    from attention_transfer.viewing.inference import Answer

EXAMPLES = (
    "maps timm:resnet34 --images photos",
    "maps runs/teacher runs/student --images cat.jpg 'photos/*.png' --points middle,top",
    "maps timm:resnet34 --images cat.jpg --points layer3.* --per-image --format pdf",
    "maps runs/student --images photos --attention gradient --out runs/gradient-maps",
)


def add_arguments(parser: Parser) -> None:
    """The flags."""
    parser.add_config(MapsConfig, positional=("models",))


def run(arguments: Namespace) -> int:
    """Looks, draws and says where the pictures are."""
    config = config_from(arguments, MapsConfig)
    from attention_transfer.viewing import look

    found = look(config)
    for notice in _notices(found):
        print(f"attention-transfer: {escape_control_characters(notice)}", file=sys.stderr)
    if arguments.json:
        print_json(_document(found))
        return 0
    where = console(False)
    seen = found.seen
    rows = [
        [scene.picture.name, *(str(own[index].answer or "-") for own in seen.sights)]
        for index, scene in enumerate(seen.scenes)
    ]
    print_table(where, ["image", *(network.name for network in seen.networks)], rows)
    print_line(where, "")
    for file in found.files:
        print_line(where, f"where they look: {file}")
    print_line(where, f"raw maps: {found.raw}")
    return 0


def _notices(found: "MapsResult") -> list[str]:
    """What was assumed, and what was left out."""
    left_out = [f"left out {path}: {reason}" for path, reason in found.unreadable]
    return [*filter(None, (network.notice for network in found.seen.networks)), *left_out]


def _answer(answer: "Answer | None") -> dict[str, Any] | None:
    if answer is None:
        return None
    return {"class": answer.label, "name": answer.name, "probability": answer.probability}


def _document(found: "MapsResult") -> dict[str, Any]:
    seen = found.seen
    return {
        "folder": str(found.folder),
        "files": [str(file) for file in found.files],
        "raw": str(found.raw),
        "networks": [
            {
                "name": network.name,
                "model": network.model,
                "points": [
                    {"point": spot.point, "label": spot.label, "map": list(found.shape)}
                    for spot, found in zip(spots, own[0].maps, strict=True)
                ],
            }
            for network, spots, own in zip(seen.networks, seen.spots, seen.sights, strict=True)
        ],
        "images": [
            {
                "path": str(image),
                "predictions": [_answer(own[index].answer) for own in seen.sights],
            }
            for index, image in enumerate(found.images)
        ],
        "unreadable": [{"path": str(path), "reason": reason} for path, reason in found.unreadable],
    }
