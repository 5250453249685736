"""What one more process gives, and what agreeing after each step and checkpoints cost.

    python benchmarks/processes.py [--steps 270] [--repeat 3]

The same training (WRN-16-1 from WRN-16-2 on cluttered-digits, batch 128, fp32) by one process with
two threads, and by two processes with one thread each. In each, three kinds of step are mixed: bare
ones; those that keep batch norm's statistics for the case of a fault; and those that also agree
with the other processes. Ratios of medians are what that costs. The trainer agrees in one step of
several, so the cost over a run is ``kept + (agreeing - kept) / steps between``. A checkpoint is
saved ten times. One JSON document goes to standard output; a repetition is a new start of each
kind, in turn.

The model of docs/scaling.md is checked as well: one process with one thread and half the batch
computes what each of two processes does, and they exchange the sum of as many floats as there are
parameters.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from attention_transfer.config import DistillConfig
from attention_transfer.environment import describe_machine, make_accelerator, package_versions
from attention_transfer.runs import Run
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.processes import StepAgreement
from attention_transfer.training.remaining_batches import remaining_batches
from attention_transfer.training.setup import set_up_run
from attention_transfer.training.train_step import StepIndex
from attention_transfer.training.trainer import Trainer

BATCH = 128
WARM_UP = 6
KINDS = ("bare", "kept", "agreeing")


def main() -> None:
    """Measure one and two processes in turn, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=270)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure(arguments.steps, arguments.batch_size, arguments.worker)
        return
    found: dict[str, list[dict[str, Any]]] = {"one": [], "two": [], "half": []}
    for _ in range(arguments.repeat):
        found["one"].append(started(1, 2, BATCH, arguments.steps))
        found["two"].append(started(2, 1, BATCH, arguments.steps))
        found["half"].append(started(1, 1, BATCH // 2, arguments.steps))
    document = {
        "machine": describe_machine(),
        "versions": package_versions(),
        "steps": arguments.steps,
        "processes": {
            kind: {name: [result[name] for result in results] for name in results[0]}
            for kind, results in found.items()
        },
        "two_over_one_images_per_second": [
            one["seconds_a_step"] / two["seconds_a_step"]
            for one, two in zip(found["one"], found["two"], strict=True)
        ],
        "two_over_model": [
            two["seconds_a_step"] / (half["seconds_a_step"] + two["seconds_to_exchange"])
            for two, half in zip(found["two"], found["half"], strict=True)
        ],
    }
    print(json.dumps(document, indent=2))


def started(processes: int, threads: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Return the figures of a start with so many processes, of so many threads each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", __file__, f"--steps={steps}"]
        command += [f"--batch-size={batch_size}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(
            [*command, "--worker", folder], env=environment, check=True, stdout=sys.stderr
        )
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
        return result


def measure(steps: int, batch_size: int, folder: Path) -> None:
    """Train in this process, with the kinds of step in turn, and write the figures."""
    config = DistillConfig.checked(
        {
            "teacher": "wrn-16-2@random",
            "student": "wrn-16-1",
            "data": "cluttered-digits",
            "batch_size": batch_size,
            "precision": "fp32",
            "epochs": 1 + 2 * (steps + WARM_UP) * batch_size // 3600,
            "beta": 100,
            "probes": 0,
            "out": str(folder / "run"),
        }
    )
    accelerator = make_accelerator()
    trainer = Trainer(set_up_run(config), Run(folder / "run"), accelerator, RunProgress())
    step = trainer.train_step
    # The cost of measuring gradients is another one, which benchmarks/auto_beta.py gives.
    step.transfer.gradient_balance = None
    step.set_train_mode()
    every_step = StepAgreement(trainer.processes, every_step=True)
    chosen = step._agreement
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    everything = remaining_batches(trainer.setup, 0, 0, trainer.processes, accelerator.device)
    # Each kind once in three steps, in a random order, the same in all processes: a fixed order is
    # worth something itself.
    order = random.Random(0)
    rounds = -(-(steps + WARM_UP) // len(KINDS))
    kinds = [kind for _ in range(rounds) for kind in order.sample(KINDS, len(KINDS))]
    for index, (kind, batch) in enumerate(zip(kinds, islice(everything, len(kinds)), strict=True)):
        position = StepIndex(0, index, index / len(kinds))
        step._agreement = every_step if kind == "agreeing" else Alone()  # type: ignore[assignment]
        began = time.perf_counter()
        if kind == "bare":
            step._step(batch, None, position, (0, 0))
        else:
            step.step(batch, None, position, 0, 0)
        if index >= WARM_UP:
            times[kind].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratios = {kind: medians[kind] / medians["bare"] for kind in KINDS}
    parameters = sum(weight.numel() for weight in trainer.setup.transfer.parameters())
    exchange = seconds_to_exchange(parameters)
    if accelerator.is_main_process:
        folder.joinpath("run").mkdir()
        trainer.epoch, costs = 1, []
        for trainer.step in range(10):
            trainer._write_checkpoint([])
            costs.append(trainer.checkpointing.cost)
        checkpoint = statistics.median(costs)
        between = chosen.steps_between(medians["kept"])
        result = {
            "kept_over_bare": ratios["kept"],
            "agreeing_over_bare": ratios["agreeing"],
            "steps_between_agreements": between,
            "run_over_bare": ratios["kept"] + (ratios["agreeing"] - ratios["kept"]) / between,
            "seconds_a_step": medians["kept"],
            "parameters": parameters,
            "seconds_to_exchange": exchange,
            "seconds_a_checkpoint": checkpoint,
            "checkpoints_share_of_time": statistics.median(costs)
            / (60 * config.checkpoint_minutes),
        }
        (folder / "result.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()


def seconds_to_exchange(parameters: int) -> float:
    """Return the median time of a sum of so many floats over the processes."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return 0.0
    gradients, times = torch.zeros(parameters), []
    for _ in range(50):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Alone:
    """Takes the place of the agreement in steps without one."""

    def beginning(self, *wishes: int) -> Callable[[], tuple[int, ...]]:
        """Return zeros, as in a step after which the processes do not agree."""
        return lambda: (0,) * len(wishes)


if __name__ == "__main__":
    main()
