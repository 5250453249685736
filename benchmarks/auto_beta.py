"""What beta="auto" costs: a step in which gradients are measured, and the share of such steps.

    python benchmarks/auto_beta.py [--steps 60] [--batch-size 64] [--precision bf16] [--compile]

Steps (forward and backward pass, cached targets) of WRN-16-1 from WRN-16-2 on random images: with a
constant beta, with beta auto where nothing is measured, and where everything is, in turn. The cost
for a whole run is the mean over its steps. One JSON document goes to standard output.
"""

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import torch

import attention_transfer as at
from attention_transfer.environment import AUTOCAST, describe_machine, package_versions
from attention_transfer.models import build
from attention_transfer.transfer import gradient_balance

RUNS = (70, 250, 850, 4000, 80_000)
"""Steps of the runs whose cost is told."""

WARM_UP = 6


def main() -> None:
    """Measure the three kinds of step in turn, and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parsed = parser.parse_args()
    images = torch.rand(parsed.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (parsed.batch_size,))
    kinds: dict[str, tuple[at.Transfer, bool]] = {
        "constant": (transfer_of(1000.0), False),
        "auto, not measured": (transfer_of("auto"), False),
        "auto, measured": (transfer_of("auto"), True),
    }
    targets = kinds["constant"][0].targets(images, labels)
    for transfer, _ in kinds.values():
        if parsed.compile:
            transfer.compile_passes()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    dtype = AUTOCAST.get(parsed.precision)
    order = list(kinds)
    for number in range(parsed.steps + WARM_UP):
        order.append(order.pop(0))  # what came before a step has an effect on its time
        for kind in order:
            transfer, measured = kinds[kind]
            gradient_balance.is_measured = partial(always, measured)
            began = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                out = transfer(images, labels, targets=targets)
            out.loss.backward()
            transfer.zero_grad()
            if number >= WARM_UP:
                times[kind].append(time.perf_counter() - began)
    print(json.dumps(document(parsed, times), indent=2))


def transfer_of(beta: Any) -> at.Transfer:
    """Return a transfer of new networks."""
    torch.manual_seed(0)
    student, teacher = (
        build(name, classes=10).to(memory_format=torch.channels_last)
        for name in ("wrn-16-1", "wrn-16-2")
    )
    return at.Transfer(student, teacher, [at.CrossEntropy(), at.ActivationAttention(beta)])


def always(measured: bool, _: int) -> bool:
    """Return the same for every step."""
    return measured


def document(parsed: argparse.Namespace, times: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios of the kinds of step, and the cost for runs of several lengths."""
    medians = {kind: statistics.median(seconds) for kind, seconds in times.items()}
    plain = medians["auto, not measured"] / medians["constant"]
    measured = medians["auto, measured"] / medians["constant"]
    shares = {steps: sum(map(IS_MEASURED, range(steps))) / steps for steps in RUNS}
    return {
        "machine": describe_machine(),
        "versions": package_versions(),
        "settings": vars(parsed),
        "seconds_a_step": medians,
        "not_measured_over_constant": plain,
        "measured_over_constant": measured,
        "whole_run_over_constant": {
            steps: share * measured + (1 - share) * plain for steps, share in shares.items()
        },
    }


IS_MEASURED = gradient_balance.is_measured

if __name__ == "__main__":
    main()
