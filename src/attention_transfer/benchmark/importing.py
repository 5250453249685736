"""Start-up time: ``import attention_transfer`` over ``import torch``, and ``--help``."""

import subprocess
import sys
from functools import partial

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import milliseconds, ratio
from attention_transfer.benchmark.timing import Progress, interleave, timed
from attention_transfer.config import BenchmarkConfig

__all__ = ["measure"]

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import attention_transfer": ["-c", "import attention_transfer"],
    "attention_transfer.Transfer": ["-c", "import attention_transfer as at; at.Transfer"],
    "--help": ["-m", "attention_transfer", "--help"],
}
NOTES = (
    "each time is that of a whole process",
    "import attention_transfer imports torch only when one of its names is first used, so "
    "import_over_torch measures the first use of attention_transfer.Transfer",
)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Start fresh processes of each kind, interleaved."""
    progress(f"starting {len(COMMANDS)} kinds of processes, {config.repetitions} times each")
    processes = {name: timed(partial(_start, command)) for name, command in COMMANDS.items()}
    times = interleave(processes, config.repetitions, warm_up=1)
    first_use, torch = times["attention_transfer.Transfer"], times["import torch"]
    over_torch = [ours - theirs for ours, theirs in zip(first_use, torch, strict=True)]
    case = Case(
        milliseconds=milliseconds({**times, "attention_transfer.Transfer over torch": over_torch}),
        ratios={"import_over_torch": ratio(first_use, torch)},
    )
    return Measured(cases={"starting up": case}, notes=NOTES)


def _start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
