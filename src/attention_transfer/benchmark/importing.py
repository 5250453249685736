"""What starting up costs: ``import attention_transfer`` over ``import torch``, and ``--help``."""

import subprocess
import sys

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import ratio, spread
from attention_transfer.benchmark.timing import Say, in_turns, timed
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
    "import attention_transfer brings torch only when a name of its needs it, so "
    "import_over_torch is of its first use, attention_transfer.Transfer",
)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Starts fresh processes in turns."""
    say(f"starting {len(COMMANDS)} kinds of processes, {config.repetitions} times each")
    measured = {
        name: timed(lambda arguments=arguments: _start(arguments))  # type: ignore[misc]
        for name, arguments in COMMANDS.items()
    }
    times = in_turns(measured, config.repetitions, warm_up=1)
    first, torch = times["attention_transfer.Transfer"], times["import torch"]
    over = [1000 * (ours - theirs) for ours, theirs in zip(first, torch, strict=True)]
    milliseconds = {
        name: spread([1000 * time for time in seconds]) for name, seconds in times.items()
    }
    case = Case(
        milliseconds={**milliseconds, "attention_transfer.Transfer over torch": spread(over)},
        ratios={"import_over_torch": ratio(first, torch)},
    )
    return Measured(cases={"starting up": case}, notes=NOTES)


def _start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
