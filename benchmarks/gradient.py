"""Times a step with gradient attention: autograd's double backward and ours, against a plain step.

    python benchmarks/gradient.py [--repetitions N] [--network NAME ...] [--no-memory]

For each network, precision and memory format, in milliseconds and as ratios to the plain step
(forward and backward of the cross-entropy):

- autograd: the same loss with ``torch.autograd.grad(..., create_graph=True)`` and nothing of ours;
- ours: ``GradientAttention`` in a ``Transfer``, the teacher's gradient given;
- ours, uncompiled: the same where no compiler is found;
- ours, live teacher: with the teacher's forward and backward pass;
- flip symmetry: ours, all classes.

Repetitions are interleaved, so that a machine whose speed drifts treats all alike. Peak memory is
what two steps add to a process of their own (Linux only).
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer import (
    CrossEntropy,
    FlipSymmetry,
    GradientAttention,
    Transfer,
    models,
)
from attention_transfer.double_backward import batch_norm
from attention_transfer.machine import (
    describe_machine,
    keep_freed_memory,
    package_versions,
)
from attention_transfer.transfer.teacher import Seen

NETWORKS = ("wrn-16-1", "wrn-16-1-nobn", "wrn-40-2", "wrn-40-2-nobn")
TEACHERS = {"wrn-16-1": "wrn-16-2", "wrn-40-2": "wrn-40-2"}
PRECISIONS = {"bf16": torch.bfloat16, "fp32": None}
FUSED_FROM = batch_norm._LARGE
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--network", nargs="*", default=list(NETWORKS))
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", nargs=4, metavar=("NETWORK", "PRECISION", "FORMAT", "KIND"))
    asked = parser.parse_args()
    if asked.only:
        network, precision, layout, kind = asked.only
        print(peak_memory(steps(network, precision, layout, asked.batch_size)[kind]))
        return
    keep_freed_memory()
    rows = []
    for network in asked.network:
        for precision in PRECISIONS:
            for layout in FORMATS:
                case = (network, precision, layout)
                rows.append(measure(case, asked))
                print(row_text(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "settings": {"batch_size": asked.batch_size, "repetitions": asked.repetitions},
        "machine": describe_machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    print(json.dumps(document, indent=2))


def steps(
    network: str, precision: str, layout: str, batch_size: int
) -> dict[str, Callable[[], None]]:
    """The kinds of step, on the same network and batch."""
    torch.manual_seed(0)
    student = models.build(network, classes=10)
    base, bare = network.removesuffix("-nobn"), "-nobn" if network.endswith("-nobn") else ""
    teacher = models.build(TEACHERS[base] + bare, classes=10)
    for model in (student, teacher):
        model.to(memory_format=FORMATS[layout])
    images = torch.rand(batch_size, 3, 32, 32).to(memory_format=FORMATS[layout])
    labels = torch.randint(10, (batch_size,))
    lowered = PRECISIONS[precision]
    autocast = torch.autocast("cpu", lowered, enabled=lowered is not None)
    terms = [CrossEntropy(), GradientAttention(1.0)]
    live = Transfer(student, teacher, terms)
    given = Transfer(student, teacher, terms)
    with autocast:
        assert live.teacher is not None
        seen = live.teacher.with_gradient(images, labels)
    given.teacher = Recorded(seen)  # type: ignore[assignment]
    plain = Transfer(student, terms=[CrossEntropy()])
    flips = Transfer(student, terms=[CrossEntropy(), FlipSymmetry(1.0)])
    assert seen.gradient is not None
    teacher_gradient: Tensor = seen.gradient

    def step(transfer: Transfer, large: int = FUSED_FROM) -> None:
        batch_norm._LARGE = large
        student.zero_grad()
        with autocast:
            out = transfer(images, labels)
        out.loss.backward()

    def autograd() -> None:
        student.zero_grad()
        leaf = images.detach().requires_grad_()
        with autocast:
            logits = student(leaf)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        norms = (gradient - teacher_gradient).flatten(1).norm(dim=1)
        torch.autograd.backward(loss / len(labels) + norms.mean() / 2)

    return {
        "plain": lambda: step(plain),
        "autograd": autograd,
        "ours": lambda: step(given),
        "ours, uncompiled": lambda: step(given, large=sys.maxsize),
        "ours, live teacher": lambda: step(live),
        "flip symmetry": lambda: step(flips),
    }


class Recorded:
    """A teacher whose answer for the one batch is known."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def with_gradient(self, images: Tensor, labels: Tensor) -> Seen:
        """What was seen."""
        return self.seen


def measure(case: tuple[str, str, str], asked: argparse.Namespace) -> dict[str, Any]:
    """One row: medians, spreads, ratios to the plain step, and peak memory."""
    actions = steps(*case, asked.batch_size)
    times: dict[str, list[float]] = {kind: [] for kind in actions}
    for repetition in range(asked.repetitions + 2):
        for kind, action in actions.items():
            began = time.perf_counter()
            action()
            if repetition >= 2:
                times[kind].append(1000 * (time.perf_counter() - began))
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    row: dict[str, Any] = dict(zip(("network", "precision", "memory_format"), case, strict=True))
    row["milliseconds"] = {
        kind: {"median": medians[kind], "least": min(values), "most": max(values)}
        for kind, values in times.items()
    }
    row["time_over_plain"] = {kind: value / medians["plain"] for kind, value in medians.items()}
    if asked.memory:
        peaks = {kind: own_process(*case, kind, asked.batch_size) for kind in actions}
        row["peak_megabytes"] = peaks
        row["memory_over_plain"] = {kind: peak / peaks["plain"] for kind, peak in peaks.items()}
    return row


def own_process(network: str, precision: str, layout: str, kind: str, batch_size: int) -> float:
    """Peak memory of one kind of step in a process of its own, in megabytes."""
    command = [sys.executable, __file__, "--batch-size", str(batch_size)]
    command += ["--only", network, precision, layout, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_memory(action: Callable[[], None]) -> float:
    """By how much a step raises the process's resident memory at most, in megabytes.

    A step before it pays for what is once a process: kernels to compile, libraries to load.
    """
    action()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def resident(which: str) -> float:
    """A line of Linux's account of this process, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line[:5] == which) / 1024


def row_text(row: dict[str, Any]) -> str:
    """A row for people."""
    name = " ".join(row[key] for key in ("network", "precision", "memory_format"))
    times = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in row["time_over_plain"].items())
    memory = row.get("memory_over_plain", {})
    sizes = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in memory.items())
    plain = row["milliseconds"]["plain"]["median"]
    return f"{name} (plain {plain:.0f} ms): {times}" + (f"; memory {sizes}" if sizes else "")


if __name__ == "__main__":
    main()
