"""Times a training step: the student alone, the teacher's forward pass, and both with attention.

    python benchmarks/step.py [--repetitions N] [--precision bf16|fp32]

Repetitions are interleaved, so that a machine whose speed drifts treats all alike; medians are
printed, and the ratio of a step with a live teacher to (student alone + teacher forward).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from attention_transfer import ActivationAttention, CrossEntropy, Transfer, models
from attention_transfer.machine import (
    describe_machine,
    keep_freed_memory,
    package_versions,
)

PAIRS = (("wrn-16-1", "wrn-16-2"), ("wrn-16-2", "wrn-40-2"))


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    asked = parser.parse_args()
    keep_freed_memory()
    results = {
        f"{student} from {teacher}": measure(student, teacher, asked) for student, teacher in PAIRS
    }
    document = {
        "settings": vars(asked),
        "machine": describe_machine(),
        "versions": package_versions(),
        "results": results,
    }
    print(json.dumps(document, indent=2))


def measure(student_name: str, teacher_name: str, asked: argparse.Namespace) -> dict[str, float]:
    """Medians in milliseconds of one pair's steps, and the ratio."""
    student, teacher = (
        models.build(name, classes=10).to(memory_format=torch.channels_last)
        for name in (student_name, teacher_name)
    )
    images = torch.rand(asked.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (asked.batch_size,))
    alone = Transfer(student, terms=[CrossEntropy()])
    live = Transfer(student, teacher, [CrossEntropy(), ActivationAttention()])
    precision = torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bf16")

    def step(transfer: Transfer) -> None:
        student.zero_grad()
        with precision:
            out = transfer(images, labels)
        out.loss.backward()

    def teacher_forward() -> None:
        with torch.no_grad(), precision:
            teacher(images)

    milliseconds = medians(
        {
            "student alone": lambda: step(alone),
            "teacher forward": teacher_forward,
            "live teacher": lambda: step(live),
        },
        asked.repetitions,
    )
    floor = milliseconds["student alone"] + milliseconds["teacher forward"]
    return {**milliseconds, "live over floor": milliseconds["live teacher"] / floor}


def medians(actions: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """Each action's median time in milliseconds, after three rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repetition in range(repetitions + 3):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if repetition >= 3:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
