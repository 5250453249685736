"""The ways to take a step: the student alone, the teacher alone, live and cached."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer import models
from attention_transfer.benchmark.reference import FeatureExtractor
from attention_transfer.benchmark.timing import Action, device
from attention_transfer.cache import build_cache
from attention_transfer.config import (
    BenchmarkConfig,
    CacheConfig,
    DistillConfig,
    ImagesConfig,
    RunConfig,
)
from attention_transfer.environment import AUTOCAST
from attention_transfer.functional import losses, maps
from attention_transfer.transfer import ActivationAttention, CrossEntropy, Transfer, TransferOutput

__all__ = [
    "MODES",
    "StepBenchmark",
    "Loss",
    "Setting",
    "cache_seconds",
    "run_configs",
    "stepping",
]

BETA = 1000.0

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is switched on."""

    precision: str
    channels_last: bool = True
    folded: bool = True
    fused: bool = True
    compiled: bool = False


class StepBenchmark:
    """A pair of networks and a batch, the same for the same arguments.

    Args:
        pair: ``student:teacher``.
        batch_size: images.
        setting: memory format, and what the steps are to be like.
        classes: how many the networks tell apart.

    Raises:
        InputError: a network is not known.
    """

    def __init__(self, pair: str, batch_size: int, setting: Setting, classes: int = 10) -> None:
        self.setting, self._classes = setting, classes
        student, self._teacher = pair.split(":")
        self.student = self._network(student)
        images = torch.rand(batch_size, 3, 32, 32).to(device())
        self.images = images.to(memory_format=self._layout)
        self.labels = torch.randint(classes, (batch_size,)).to(device())

    @cached_property
    def teacher(self) -> nn.Module:
        """Frozen; made when it is asked for, so that a student alone is alone in memory."""
        return self._network(self._teacher).requires_grad_(False).eval()

    @property
    def points(self) -> list[str]:
        """Where attention is read, in both networks."""
        return list(self.student.attention_points)  # type: ignore[arg-type]

    def _network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return models.build(name, self._classes).to(device()).to(memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.setting.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[None]:
        """The precision."""
        lowered = self.setting.precision == "bf16"
        return torch.autocast(device().type, torch.bfloat16, enabled=lowered)

    def transfer(self) -> Transfer:
        """The objective, as a run has it: the teacher folded, passes compiled, if switched on."""
        terms = [CrossEntropy(), ActivationAttention(BETA)]
        example = self.images[:1]
        transfer = Transfer(self.student, self.teacher, terms, example_input=example)
        if self.setting.folded:
            transfer.optimize_teacher_for_inference(example, AUTOCAST.get(self.setting.precision))
        if self.setting.compiled:
            transfer.compile_passes()
        return transfer

    def compiled(self, network: nn.Module) -> nn.Module:
        """The network, compiled if that is switched on."""
        return torch.compile(network) if self.setting.compiled else network  # type: ignore[return-value]


def student_alone(bench: StepBenchmark) -> Loss:
    """What any training costs."""
    student = bench.compiled(bench.student)

    def loss() -> Tensor:
        return functional.cross_entropy(student(bench.images).float(), bench.labels)

    return loss


def live(bench: StepBenchmark) -> Loss:
    """The teacher answers in every step."""
    if not bench.setting.fused:
        return _by_autograd(bench, cached=False)
    transfer = bench.transfer()

    def loss() -> Tensor:
        out: TransferOutput = transfer(bench.images, bench.labels)
        return out.loss

    return loss


def cached(bench: StepBenchmark) -> Loss:
    """The teacher answered before."""
    if not bench.setting.fused:
        return _by_autograd(bench, cached=True)
    transfer = bench.transfer()
    with bench.autocast():
        targets = transfer.targets(bench.images, bench.labels)

    def loss() -> Tensor:
        out: TransferOutput = transfer(bench.images, bench.labels, targets=targets)
        return out.loss

    return loss


MODES: dict[str, Callable[[StepBenchmark], Loss]] = {
    "student": student_alone,
    "live": live,
    "cached": cached,
}


def stepping(mode: str, bench: StepBenchmark) -> Action:
    """Forward and backward of a mode, or the teacher's forward pass alone."""
    if mode == "teacher":
        return lambda: _teacher_forward(bench)
    loss_of = MODES[mode](bench)

    def step() -> None:
        bench.student.zero_grad()
        with bench.autocast():
            loss = loss_of()
        torch.autograd.backward(loss)

    return step


@torch.no_grad()
def _teacher_forward(bench: StepBenchmark) -> None:
    """The whole network as it is, in eval mode: what anybody would write."""
    with bench.autocast():
        bench.teacher(bench.images)


def _by_autograd(bench: StepBenchmark, cached: bool) -> Loss:
    """The same loss by the plain formulas, which autograd differentiates."""
    student = bench.compiled(FeatureExtractor(bench.student, bench.points))
    teacher = FeatureExtractor(bench.teacher, bench.points)

    @torch.no_grad()
    def answers() -> list[Tensor]:
        return [maps.activation_map(features) for features in teacher(bench.images)[1]]

    with bench.autocast():
        known = answers() if cached else None

    def loss() -> Tensor:
        wanted = answers() if known is None else known
        logits, features = student(bench.images)
        total = functional.cross_entropy(logits.float(), bench.labels)
        for ours, theirs in zip(features, wanted, strict=True):
            pair = losses.attention_transfer(maps.activation_map(ours), theirs)
            total = total + BETA * pair
        return total

    return loss


def run_configs(pair: str, config: BenchmarkConfig, cache: Path) -> dict[str, RunConfig]:
    """Whole runs of a pair: the student alone, live, and with the targets of a cache."""
    student, teacher = pair.split(":")
    common: dict[str, Any] = {
        "data": config.data,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "compile": config.compile,
        "lr": 0.02,  # teachers are untrained: speed is asked for, and no run may diverge
        "probes": 0,
        "report": False,
    }
    live = DistillConfig(teacher=f"{teacher}@random", student=student, **common)
    return {
        "student": RunConfig(student=student, **common),
        "live": live,
        "cached": live.replace(cache=cache),
    }


def cache_seconds(config: RunConfig) -> float:
    """Makes the cache that a run with ``cache`` needs; returns the seconds it took."""
    images = {name: getattr(config, name) for name in ImagesConfig.model_fields}
    asked = CacheConfig(cache=config.cache, teacher=config.teacher, views=config.epochs, **images)
    began = time.perf_counter()
    build_cache(asked)
    return time.perf_counter() - began
