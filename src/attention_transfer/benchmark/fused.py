"""Maps and loss of one pair of layers, forward and backward: in one pass, and by autograd."""

from functools import partial
from itertools import product

import torch
from torch import Tensor

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import ratio, spread
from attention_transfer.benchmark.memory import give_back_at_once, in_use, peak, restart_peak
from attention_transfer.benchmark.processes import OwnProcess
from attention_transfer.benchmark.timing import Action, Say, device, in_turns, timed
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.functional import fused, losses, maps

__all__ = ["measure"]

SIZES = ((64, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 16, 16))
"""Channels, height and width of features."""

Features = tuple[tuple[int, ...], str, str]
"""Their shape, precision and memory format."""

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
KINDS = ("fused", "autograd", "copy")
NOTES = (
    "forward and backward of maps and loss, the teacher's map given; copy: as many bytes, once",
    "extra memory: above the features and their gradient, over the features",
)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Each size of features, in both memory formats."""
    keep_freed_memory()
    precision = resolve_precision(config.precision)
    cases = {}
    with OwnProcess() as process:
        for size, layout in product(SIZES, FORMATS):
            shape = config.batch_size, *size
            name = f"{'x'.join(map(str, shape))}, {precision}, {layout}"
            say(f"fused: {name}")
            cases[name] = _case((shape, precision, layout), config, process)
    return Measured(cases=cases, notes=NOTES)


def _case(features: Features, config: BenchmarkConfig, process: OwnProcess) -> Case:
    actions = {kind: timed(_action(kind, *features)) for kind in KINDS}
    times = in_turns(actions, config.repetitions)
    extra: dict[str, float | None] = {}
    if config.memory:
        for kind in ("fused", "autograd"):
            share = process.call(_extra_memory, kind, *features)
            extra[f"extra memory over features, {kind}"] = share
    return Case(
        milliseconds={
            kind: spread([1000 * time for time in seconds]) for kind, seconds in times.items()
        },
        ratios={
            "fused_over_autograd": ratio(times["fused"], times["autograd"]),
            "fused_over_copy": ratio(times["fused"], times["copy"]),
        },
        figures=extra,
    )


def _action(kind: str, shape: tuple[int, ...], precision: str, layout: str) -> Action:
    features = _features(shape, precision, layout)
    if kind == "copy":
        return partial(torch.empty_like(features).copy_, features)
    leaf = features.requires_grad_()
    with torch.no_grad():
        wanted = maps.activation_map(_features(shape, precision, layout))

    def taken() -> None:
        leaf.grad = None
        loss = _in_one_pass(leaf, wanted) if kind == "fused" else _by_autograd(leaf, wanted)
        torch.autograd.backward(loss)

    return taken


def _in_one_pass(features: Tensor, wanted: Tensor) -> Tensor:
    return fused.attention_transfer(features, wanted)[0]


def _by_autograd(features: Tensor, wanted: Tensor) -> Tensor:
    return losses.attention_transfer(maps.activation_map(features), wanted)


def _features(shape: tuple[int, ...], precision: str, layout: str) -> Tensor:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    features = torch.randn(shape, device=device(), dtype=dtype)
    return features.to(memory_format=FORMATS[layout])


def _extra_memory(kind: str, shape: tuple[int, ...], precision: str, layout: str) -> float:
    """What a pass holds at most beyond the features and their gradient, over the features."""
    give_back_at_once()
    action = _action(kind, shape, precision, layout)
    action()  # brings code into memory, and leaves the gradient there
    restart_peak()
    before = in_use()
    action()
    return 2**20 * (peak() - before) / _features(shape, precision, layout).nbytes
