"""The maps and the loss of one layer pair, forward and backward: fused, and by autograd."""

from functools import partial
from itertools import product

import torch
from torch import Tensor

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import milliseconds, ratio
from attention_transfer.benchmark.memory import (
    memory_in_use,
    peak_memory,
    release_freed_blocks,
    reset_peak_memory,
)
from attention_transfer.benchmark.processes import OwnProcess
from attention_transfer.benchmark.timing import Action, Progress, device, interleave, timed
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.functional import fused, losses, maps

__all__ = ["measure"]

SIZES = ((64, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 16, 16))
"""Channels, height and width of the features."""

Features = tuple[tuple[int, ...], str, str]
"""Shape, precision and memory format of features."""

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
KINDS = ("fused", "autograd", "copy")
NOTES = (
    "forward and backward of maps and loss, with the teacher's map given; copy: one copy of the "
    "features",
    "extra memory: peak above the features and their gradient, over the features",
)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Measure each size of features in both memory formats."""
    keep_freed_memory()
    precision = resolve_precision(config.precision)
    cases = {}
    with OwnProcess() as process:
        for size, layout in product(SIZES, FORMATS):
            shape = config.batch_size, *size
            name = f"{'x'.join(map(str, shape))}, {precision}, {layout}"
            progress(f"fused: {name}")
            cases[name] = _measure_features((shape, precision, layout), config, process)
    return Measured(cases=cases, notes=NOTES)


def _measure_features(features: Features, config: BenchmarkConfig, process: OwnProcess) -> Case:
    actions = {kind: timed(_action(kind, *features)) for kind in KINDS}
    times = interleave(actions, config.repetitions)
    extra: dict[str, float | None] = {}
    if config.memory:
        for kind in ("fused", "autograd"):
            share = process.call(_extra_memory, kind, *features)
            extra[f"extra memory over features, {kind}"] = share
    return Case(
        milliseconds=milliseconds(times),
        ratios={
            "fused_over_autograd": ratio(times["fused"], times["autograd"]),
            "fused_over_copy": ratio(times["fused"], times["copy"]),
        },
        figures=extra,
    )


def _action(kind: str, shape: tuple[int, ...], precision: str, layout: str) -> Action:
    features = _random_features(shape, precision, layout)
    if kind == "copy":
        return partial(torch.empty_like(features).copy_, features)
    leaf = features.requires_grad_()
    with torch.no_grad():
        teacher_map = maps.activation_map(_random_features(shape, precision, layout))

    def forward_and_backward() -> None:
        leaf.grad = None
        if kind == "fused":
            loss = fused.attention_transfer(leaf, teacher_map)[0]
        else:
            loss = losses.attention_transfer(maps.activation_map(leaf), teacher_map)
        torch.autograd.backward(loss)

    return forward_and_backward


def _random_features(shape: tuple[int, ...], precision: str, layout: str) -> Tensor:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    features = torch.randn(shape, device=device(), dtype=dtype)
    return features.to(memory_format=FORMATS[layout])


def _extra_memory(kind: str, shape: tuple[int, ...], precision: str, layout: str) -> float:
    """Return the peak beyond the features and their gradient, as a share of the features."""
    release_freed_blocks()
    action = _action(kind, shape, precision, layout)
    action()  # loads code, and allocates the gradient
    reset_peak_memory()
    before = memory_in_use()
    action()
    extra = 2**20 * (peak_memory() - before)
    return extra / _random_features(shape, precision, layout).nbytes
