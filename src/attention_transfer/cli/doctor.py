"""list the installed packages and extras, and what this machine supports"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.terminal import print_line
from attention_transfer.waiting import loading

EXAMPLES = ("doctor", "doctor --json")


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    parser.add_json()


def run(arguments: Namespace) -> int:
    """Print the versions, the machine and the extras."""
    loading("torch", "PyTorch")
    from attention_transfer.environment import (
        EXTRAS,
        describe_machine,
        package_versions,
        resolve_precision,
    )

    versions = package_versions()
    extras = {extra: package_versions(packages) for extra, packages in EXTRAS.items()}
    machine = describe_machine()
    precision = resolve_precision("auto")
    if arguments.json:
        print_json(
            {"versions": versions, "extras": extras, "machine": machine, "precision": precision}
        )
        return 0
    where = console(False)
    rows = [[name, installed or "not installed"] for name, installed in versions.items()]
    print_table(where, ["package", "version"], rows)
    rows = [[name, str(value)] for name, value in machine.items()]
    print_table(where, ["machine", ""], rows, title="")
    print_line(where, "")
    print_line(where, f"--precision auto means {precision} here")
    for extra, packages in extras.items():
        missing = [name for name, installed in packages.items() if installed is None]
        state = (
            f"missing {', '.join(missing)}: pip install 'attention-transfer[{extra}]'"
            if missing
            else "installed"
        )
        print_line(where, f"extra {extra}: {state}")
    return 0
