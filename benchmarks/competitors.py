"""The competitors of ``peers.py``: torchdistill, the usual loop, and this library, live and cached.

Each takes whole training steps, optimizer included, on the same networks and batches.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer.benchmark.modes import (
    BETA,
    LOSSES,
    FeatureExtractor,
    Setting,
    StepBenchmark,
)
from attention_transfer.benchmark.timing import device, synchronize
from attention_transfer.config import BenchmarkConfig
from attention_transfer.data import AugmentedView, DataSet, batches, epoch_order, load_data
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import Preprocessing

__all__ = ["OTHERS", "OURS", "check_installed", "epoch_rate", "first_loss", "step_seconds"]

Step = Callable[[Tensor, Tensor], Tensor]
"""Takes a step on images and labels, optimizer included, and returns the loss."""

OPTIMIZER: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
OURS = ("live", "cached")


def check_installed() -> None:
    """Raise an InputError unless torchdistill is installed."""
    if find_spec("torchdistill") is None:
        raise InputError(
            "the comparison needs torchdistill, which is not installed; "
            "pip install 'torchdistill>=1.1.5'"
        )


def torchdistill_step(bench: StepBenchmark) -> Step:
    """Return torchdistill's own step in float32: its hooks, its AT loss and its optimizer."""
    from torchdistill.core.distillation import DistillationBox

    box = DistillationBox(
        bench.teacher, bench.student, {}, _box_config(bench.points), device(), None, False, 1
    )
    box.pre_epoch_process(epoch=0)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        box.pre_forward_process()
        loss: Tensor = box.forward_process(images, labels)
        box.post_forward_process(loss=loss)
        return loss.detach()

    return step


def _box_config(points: list[str]) -> dict[str, Any]:
    """Return the smallest configuration of a DistillationBox with cross-entropy and AT."""
    hooked = {"forward_proc": "forward_batch_only", "forward_hook": {"output": points}}
    outputs = {point: {"io": "output", "path": point} for point in points}
    pairs = {point: {"teacher": outputs[point], "student": outputs[point]} for point in points}
    labels = {
        "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
        "target": {"uses_label": True},
    }
    terms = {
        "labels": {
            "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
            "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": labels},
            "weight": 1.0,
        },
        "attention": {
            "criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}},
            "weight": BETA,
        },
    }
    return {
        "num_epochs": 1,
        "teacher": {**hooked, "requires_grad": False},
        "student": hooked,
        "optimizer": {"key": "SGD", "kwargs": dict(OPTIMIZER)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def plain_step(bench: StepBenchmark) -> Step:
    """Return a step of the usual loop: the authors' formula in PyTorch, in float32."""
    student, teacher = (
        FeatureExtractor(network, bench.points) for network in (bench.student, bench.teacher)
    )
    optimizer = _optimizer(bench.student)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            _, teacher_features = teacher(images)
        logits, student_features = student(images)
        loss = authors_loss(logits, labels, student_features, teacher_features, BETA)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def authors_loss(
    logits: Tensor,
    labels: Tensor,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    beta: float,
) -> Tensor:
    """Return cross-entropy plus beta times the mean squared differences of the attention maps.

    Args:
        logits: (N, K) of the student.
        labels: (N,) class indices.
        student: (N, C, H, W) features, one tensor for each layer pair.
        teacher: (N, C', H, W) features in the same order.
        beta: weight of the sum over layer pairs.
    """
    loss = functional.cross_entropy(logits, labels)
    for student_features, teacher_features in zip(student, teacher, strict=True):
        difference = _attention(student_features) - _attention(teacher_features)
        loss = loss + beta * difference.square().mean()
    return loss


def _attention(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W): the mean square over channels, of length 1 for each image."""
    squares = features.square().mean(dim=1)
    return functional.normalize(squares.flatten(1))


def _our_step(mode: str) -> Callable[[StepBenchmark], Step]:
    """Return the factory of this library's steps, which use the benchmark's own batch."""

    def make(bench: StepBenchmark) -> Step:
        keep_freed_memory()
        optimizer, compute_loss = _optimizer(bench.student), LOSSES[mode](bench)

        def step(images: Tensor, labels: Tensor) -> Tensor:
            with bench.autocast():
                loss = compute_loss()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return loss.detach()

        return step

    return make


OTHERS: dict[str, Callable[[StepBenchmark], Step]] = {
    "torchdistill": torchdistill_step,
    "plain": plain_step,
}
COMPETITORS = {**OTHERS, **{mode: _our_step(mode) for mode in OURS}}


def step_seconds(name: str, pair: str, config: BenchmarkConfig) -> float:
    """Return the seconds of a competitor's step on a ready batch, right after another step."""
    bench, step = _ready(name, pair, config)
    step(bench.images, bench.labels)
    synchronize()
    start = perf_counter()
    step(bench.images, bench.labels)
    synchronize()
    return perf_counter() - start


def first_loss(name: str, pair: str, config: BenchmarkConfig) -> float:
    """Return a competitor's loss before training, equal for all that compute the same."""
    bench, step = _ready.__wrapped__(name, pair, config)
    return step(bench.images, bench.labels).item()


def epoch_rate(name: str, pair: str, config: BenchmarkConfig, epoch: int) -> float:
    """Return another library's images a second over one epoch of our batches."""
    _, step = _ready(name, pair, config)
    data = _data(config.data)
    preprocessing, images = Preprocessing(data.mean, data.std), data.train
    order = epoch_order(len(images), 0, epoch)
    start = perf_counter()
    for batch in batches(images, order, config.batch_size, view=AugmentedView(0, epoch)):
        pixels = preprocessing(batch.images.contiguous().to(device()))
        step(pixels, batch.labels.to(device()))
    synchronize()
    return len(images) / (perf_counter() - start)


@cache
def _ready(name: str, pair: str, config: BenchmarkConfig) -> tuple[StepBenchmark, Step]:
    """Build a competitor's networks and its step, once in each process."""
    classes = len(_data(config.data).class_names)
    if name in OTHERS:
        setting = Setting("fp32", channels_last=False)
    else:
        setting = Setting(resolve_precision(config.precision), compiled=config.compile)
    bench = StepBenchmark(pair, config.batch_size, setting, classes)
    return bench, COMPETITORS[name](bench)


@cache
def _data(data: str) -> DataSet:
    return load_data(data)


def _optimizer(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), **OPTIMIZER)
