"""compare a small network trained alone and with attention transfer, on built-in images"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import DemoConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

EXAMPLES = ("demo", "demo --train-teacher --out runs/my-demo", "demo --epochs 3 --json")


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_config(DemoConfig)


def run(arguments: Namespace) -> int:
    """Train the networks, then print the table, the summary and the paths of what was written."""
    config = config_from(arguments, DemoConfig)
    loading("torch", "PyTorch")
    from dataclasses import asdict

    from attention_transfer.drawing.demo_figure import draw_demo_figure
    from attention_transfer.experiments.demo import run_demo
    from attention_transfer.report.page import write_report
    from attention_transfer.training import RunProgress

    where = console(arguments.json)
    result = run_demo(config, RunProgress(where))
    picture = draw_demo_figure(result.scenes, result.folder / "attention.png")
    page = write_report([result.folder])
    if arguments.json:
        print_json(
            {
                "arms": [asdict(arm) for arm in result.arms],
                "sentence": result.sentence,
                "settings": result.settings,
                "folder": str(result.folder),
                "picture": str(picture),
                "report": str(page),
            }
        )
        return 0
    rows = [
        [arm.name, f"{arm.test_error:.1f}", f"{arm.parameters:,}", f"{arm.seconds:.0f}"]
        for arm in result.arms
    ]
    print_line(where, "")
    print_table(where, ["network", "test error %", "parameters", "training seconds"], rows)
    where_they_look = f"where they look: {picture}"
    for text in ("", result.sentence, result.settings, where_they_look, f"report: {page}"):
        print_line(where, text)
    return 0
