"""list a network's attention points, and how two networks would be paired"""

from argparse import Namespace
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import PointsConfig, height_and_width
from attention_transfer.errors import InputError
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

if TYPE_CHECKING:
    from rich.console import Console

    from attention_transfer.taps import AttentionPoint, PointTable
    from attention_transfer.transfer.pairing import Pairing, PairingSide

EXAMPLES = (
    "points timm:resnet34",
    "points timm:mobilenetv3_small_100 --pair timm:resnet34",
    "points timm:mobilenetv3_small_100 --pair timm:resnet34,timm:vit_tiny_patch16_224",
    "points wrn-16-1 --image-size 48x64 --json",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(PointsConfig, positional=("model",))


def run(arguments: Namespace) -> int:
    """Print the attention points and layer pairs, without loading weights."""
    config = config_from(arguments, PointsConfig)
    loading("torch", "PyTorch")
    from attention_transfer.models import split_models
    from attention_transfer.transfer.pairing import resolve_pairs

    teachers = [] if config.pair is None else split_models(config.pair)
    given = None if config.image_size is None else height_and_width(config.image_size)
    size = given or _size_of_runs([config.model, *teachers])
    networks = [_survey(model, size) for model in (config.model, *teachers)]
    names, sides = [name for name, _ in networks], [side for _, side in networks]
    pairing = None if config.pair is None else resolve_pairs("auto", *sides)
    if arguments.json:
        print_json(_document(names, sides, pairing))
        return 0
    where = console(False)
    if pairing is not None:
        _print_pairs(where, names, sides, pairing)
    for name, side in zip(names, sides, strict=True):
        _print_points(where, name, side.points, config.all)
    return 0


def _size_of_runs(models: list[str]) -> tuple[int, int] | None:
    """Return the images' height and width in the first run among some MODELs, on whose images
    networks without a run would be trained; None: there is no run.
    """
    from attention_transfer.models import read_card, run_folder

    folders = [folder for model in models if (folder := run_folder(model)) is not None]
    return read_card(folders[0]).input_size[1:] if folders else None


def _survey(model: str, size: tuple[int, int] | None) -> "tuple[str, PairingSide]":
    """Return a network's name, and its attention points."""
    from attention_transfer.models import model_structure
    from attention_transfer.transfer.pairing import PairingSide

    structure = model_structure(model, size)
    side = PairingSide(structure.network, structure.input_size)
    try:
        _ = side.points
    except InputError:  # its forward pass may depend on values, and a structure has only shapes
        structure = model_structure(model, size, values=True)
        side = PairingSide(structure.network, structure.input_size)
    return structure.name, side


def _print_points(where: "Console", name: str, points: "PointTable", every: bool) -> None:
    """Print a network's recommended points, or every point with those that cannot be read."""
    shown = [point for point in points if every or point.recommended]
    size = "x".join(map(str, points.input_size))
    rows = [
        [
            f"{'*' if point.recommended else ' '} {point.name}",
            point.module,
            point.kind,
            str(point.channels),
            f"{point.height}x{point.width}",
            "x".join(f"{stride:g}" for stride in dict.fromkeys(_rounded(point.stride))),
            f"{100 * point.depth:.1f}",
        ]
        for point in shown
    ]
    print_table(
        where,
        ["  point", "module", "kind", "channels", "map", "stride", "depth %"],
        rows,
        title=f"{name} on {size} images: {points.parameters:,} parameters, "
        f"{points.flops / 1e9:.3g} GFLOPs an image",
    )
    print_line(where, "* recommended; depth is the share of all operations up to the point")
    others = len(list(points)) - len(shown)
    if others:
        print_line(where, f"{others:,} further points: --all")
    for reason, names in _by_reason(points).items() if every else ():
        shown_names = ", ".join(names[:3]) + (
            f" and {len(names) - 3} more" if len(names) > 3 else ""
        )
        print_line(where, f"not readable: {shown_names}: {reason}")
    print_line(where, "")


def _print_pairs(
    where: "Console", names: list[str], sides: "list[PairingSide]", pairing: "Pairing"
) -> None:
    document = _pairs(sides, pairing)
    rows = [
        [
            pair["student"],
            "x".join(map(str, pair["student_shape"])),
            pair["teacher"],
            "+".join("x".join(map(str, shape)) for shape in pair["teacher_shapes"]),
            "x".join(map(str, pair["map"])),
            f"{pair['effective_weight']:.4g}",
        ]
        for pair in document["pairs"]
    ]
    columns = ["student", "shape", "teacher", "shape", "compared at", "weight on ||d||^2"]
    others = " and ".join(names[1:])
    title = f"{names[0]} attends like {others} (pairs auto; weights at beta 1000, form code)"
    print_table(where, columns, rows, title=title)
    for side, name in (("student", names[0]), ("teacher", others)):
        alone = document[f"unpaired_{side}_points"]
        if alone:
            print_line(where, f"not paired in {name}: {', '.join(alone)}")


def _document(
    names: list[str], sides: "list[PairingSide]", pairing: "Pairing | None"
) -> dict[str, Any]:
    networks = [
        {
            "model": name,
            "input_size": side.points.input_size,
            "parameters": side.points.parameters,
            "flops": side.points.flops,
            "points": [
                {**asdict(point), "kind": point.kind, "height": point.height, "width": point.width}
                for point in side.points
            ],
            "unreadable": [asdict(module) for module in side.points.unreadable],
        }
        for name, side in zip(names, sides, strict=True)
    ]
    if pairing is None:
        return networks[0]
    return {"student": networks[0], "teachers": networks[1:], **_pairs(sides, pairing)}


def _pairs(sides: "list[PairingSide]", pairing: "Pairing") -> dict[str, Any]:
    from attention_transfer.functional.losses import effective_weight
    from attention_transfer.functional.maps import common_size

    student, *teachers = sides

    def teacher_point(name: str) -> "AttentionPoint":
        if len(teachers) == 1:
            return teachers[0].points[name]
        number, _, point = name.partition(".")
        return teachers[int(number)].points[point]

    pairs = []
    for pair in pairing.pairs:
        teacher_points = [teacher_point(name) for name in pair.teacher_points]
        points = [student.points[pair.student], *teacher_points]
        shapes = [[point.channels, *point.layout.grid] for point in points]
        size = common_size(*(point.layout.grid for point in points))
        pairs.append(
            {
                "student": pair.student,
                "teacher": pair.teacher,
                "student_shape": shapes[0],
                "teacher_shapes": shapes[1:],
                "map": size,
                "effective_weight": effective_weight(1000.0, "code", size)[0],
            }
        )
    return {
        "pairs": pairs,
        "unpaired_student_points": pairing.unpaired_student_points,
        "unpaired_teacher_points": pairing.unpaired_teacher_points,
    }


def _by_reason(points: "PointTable") -> dict[str, list[str]]:
    reasons = defaultdict(list)
    for module in points.unreadable:
        reasons[module.reason].append(module.name)
    return reasons


def _rounded(stride: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(step, 1) for step in stride)
