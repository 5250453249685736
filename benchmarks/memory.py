"""Memory and time of a training step: plain, in micro-batches, and with recomputation.

    python benchmarks/memory.py [--model wrn-40-2] [--batch-size 128] [--precision fp32|bf16]

Each arm runs in a process of its own. Its memory is the largest resident set over the steps, minus
that before the first of them: gradients, activations and what the libraries take to compute them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.autograd.graph import saved_tensors_hooks

from attention_transfer import CrossEntropy, Transfer, models
from attention_transfer.environment import (
    describe_machine,
    keep_freed_memory,
    package_versions,
)
from attention_transfer.training.memory.recomputation import plan_recomputation, recomputing
from attention_transfer.training.micro_batches import micro_batches

ARMS = {
    "plain": ("1", ""),
    "accumulate 4": ("4", ""),
    "grad-checkpoint": ("1", "--grad-checkpoint"),
    "grad-checkpoint, accumulate 4": ("4", "--grad-checkpoint"),
}


def main() -> None:
    """Print one JSON document, of all arms or of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wrn-40-2")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=None, help="measure this arm alone")
    parser.add_argument("--grad-checkpoint", action="store_true")
    arguments = parser.parse_args()
    if arguments.accumulate is not None:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for name, (count, flag) in ARMS.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--accumulate", count]
        done = subprocess.run(
            command + ([flag] if flag else []), check=True, capture_output=True, text=True
        )
        results[name] = json.loads(done.stdout)
    document = {
        "settings": vars(arguments),
        "machine": describe_machine(),
        "versions": package_versions(),
        "results": results,
    }
    print(json.dumps(document, indent=2))


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the megabytes of one arm, and its CPU time, which other processes hardly affect."""
    keep_freed_memory()
    torch.manual_seed(0)
    network = models.build(arguments.model, classes=10).to(memory_format=torch.channels_last)
    images = torch.rand(arguments.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch_size,))
    recomputed = []
    if arguments.grad_checkpoint:
        recomputed = list(plan_recomputation(network, images[:1]).parts.values())
    transfer = Transfer(network.train(), terms=[CrossEntropy()])
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), images)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        network.zero_grad()
        for part in micro_batches(len(labels), arguments.accumulate):
            kept.clear()
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"),
                recomputing(recomputed),
                saved_tensors_hooks(pack, lambda tensor: tensor),
            ):
                loss = transfer(images[part], labels[part]).loss
            (loss * len(labels[part]) / len(labels)).backward()

    before = _peak()
    times = []
    for _ in range(arguments.steps + 1):
        began = time.process_time()
        step()
        times.append(1000 * (time.process_time() - began))
    return {
        "megabytes": _peak() - before,
        "megabytes kept after the forward pass": sum(kept.values()) / 2**20,
        "CPU milliseconds": statistics.median(times[1:]),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
