"""Who is measured against whom: torchdistill, the usual loop, and this library; each takes whole
steps of the same training, with the optimizer's.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.benchmark.modes import BETA, MODES, Setting, StepBenchmark
from attention_transfer.benchmark.reference import FeatureExtractor, authors_loss
from attention_transfer.benchmark.timing import device, synchronize
from attention_transfer.config import BenchmarkConfig
from attention_transfer.data import AugmentedView, DataSet, batches, epoch_order, load_data
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import Preprocessing

__all__ = ["OTHERS", "OURS", "check_installed", "epoch_rate", "first_loss", "step_seconds"]

Step = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> the loss, after the weights have changed."""

OPTIMIZER: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
OURS = ("live", "cached")


def check_installed() -> None:
    """Raises an InputError unless torchdistill can be imported."""
    if find_spec("torchdistill") is None:
        raise InputError(
            "benchmark peers measures torchdistill, which is not installed; "
            "pip install 'attention-transfer[peers]'"
        )


def torchdistill(bench: StepBenchmark) -> Step:
    """torchdistill's own box: its hooks, its AT loss, its optimizer step, in float32."""
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
    """The least that the box needs to be told."""
    watched = {"forward_proc": "forward_batch_only", "forward_hook": {"output": points}}
    place = {point: {"io": "output", "path": point} for point in points}
    pairs = {point: {"teacher": place[point], "student": place[point]} for point in points}
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
        "teacher": {**watched, "requires_grad": False},
        "student": watched,
        "optimizer": {"key": "SGD", "kwargs": dict(OPTIMIZER)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def plain(bench: StepBenchmark) -> Step:
    """The authors' formula in the usual float32 loop."""
    student, teacher = (
        FeatureExtractor(one, bench.points) for one in (bench.student, bench.teacher)
    )
    optimizer = _optimizer(bench.student)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            _, theirs = teacher(images)
        logits, ours = student(images)
        loss = authors_loss(logits, labels, ours, theirs, BETA)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def _ours(mode: str) -> Callable[[StepBenchmark], Step]:
    """A step of this library's on the bench's own batch."""

    def made(bench: StepBenchmark) -> Step:
        keep_freed_memory()
        optimizer, loss_of = _optimizer(bench.student), MODES[mode](bench)

        def step(images: Tensor, labels: Tensor) -> Tensor:
            with bench.autocast():
                loss = loss_of()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return loss.detach()

        return step

    return made


OTHERS: dict[str, Callable[[StepBenchmark], Step]] = {"torchdistill": torchdistill, "plain": plain}
CONTESTANTS = {**OTHERS, **{mode: _ours(mode) for mode in OURS}}


def step_seconds(name: str, pair: str, config: BenchmarkConfig) -> float:
    """A step on a batch that is there, in a process of this contestant's: right after another."""
    bench, step = _ready(name, pair, config)
    step(bench.images, bench.labels)
    synchronize()
    began = perf_counter()
    step(bench.images, bench.labels)
    synchronize()
    return perf_counter() - began


def first_loss(name: str, pair: str, config: BenchmarkConfig) -> float:
    """The loss before anything was learnt: the same for all who do the same work."""
    bench, step = _ready.__wrapped__(name, pair, config)
    return step(bench.images, bench.labels).item()


def epoch_rate(name: str, pair: str, config: BenchmarkConfig, epoch: int) -> float:
    """Images a second of one of the others, over an epoch of our batches."""
    _, step = _ready(name, pair, config)
    data = _data(config.data)
    normalization, images = Preprocessing(data.mean, data.std), data.train
    order = epoch_order(len(images), 0, epoch)
    began = perf_counter()
    for batch in batches(images, order, config.batch_size, view=AugmentedView(0, epoch)):
        pixels = normalization(batch.images.contiguous().to(device()))
        step(pixels, batch.labels.to(device()))
    synchronize()
    return len(images) / (perf_counter() - began)


@cache
def _ready(name: str, pair: str, config: BenchmarkConfig) -> tuple[StepBenchmark, Step]:
    """A contestant that has its networks."""
    classes = len(_data(config.data).class_names)
    if name in OTHERS:
        setting = Setting("fp32", channels_last=False)
    else:
        setting = Setting(resolve_precision(config.precision), compiled=config.compile)
    bench = StepBenchmark(pair, config.batch_size, setting, classes)
    return bench, CONTESTANTS[name](bench)


@cache
def _data(data: str) -> DataSet:
    return load_data(data)


def _optimizer(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), **OPTIMIZER)
