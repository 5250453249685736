"""export a run's network: ONNX, torch.export, int8, a model card, checked and measured"""

from argparse import Namespace
from dataclasses import asdict

from attention_transfer.cli.arguments import Parser, config_from
from attention_transfer.cli.output import console, print_json, print_notices, print_table
from attention_transfer.config import ExportConfig
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

EXAMPLES = (
    "export runs/student",
    "export runs/student --formats onnx --normalize-in-graph --out deployed",
    "export runs/student --data folder:photos --json",
    "export runs/student --push my-name/my-student",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to its parser."""
    parser.add_config(ExportConfig, positional=("run",))


def run(arguments: Namespace) -> int:
    """Export the network, and print what was measured."""
    config = config_from(arguments, ExportConfig)
    loading("torch", "PyTorch")
    from attention_transfer.export import export_run

    result = export_run(config)
    print_notices(result.notices)
    if arguments.json:
        print_json(
            {
                "folder": str(result.folder),
                "uploaded": result.uploaded,
                "validation_images": result.validation_images,
                "forms": [asdict(form) for form in result.forms],
            }
        )
        return 0
    stdout = console(False)
    print_table(
        stdout,
        ["", "file", "size", "one image", "validation error", "largest difference"],
        [
            [
                form.name,
                form.file or "",
                f"{form.bytes / 1e6:.2f} MB",
                f"{form.milliseconds:.2f} ms",
                "" if form.validation_error is None else f"{form.validation_error:.2f} %",
                "" if form.largest_difference is None else f"{form.largest_difference:.1g}",
            ]
            for form in result.forms
        ],
        title=f"{result.validation_images:,} validation images; differences are of probabilities",
    )
    print_line(stdout, f"written to {result.folder}")
    if result.uploaded is not None:
        print_line(stdout, f"uploaded; it is now the MODEL {result.uploaded}")
    return 0
