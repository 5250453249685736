"""The kinds of training step that are measured: student alone, teacher alone, live and cached."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer import models
from attention_transfer.benchmark.timing import Action, device
from attention_transfer.environment import AUTOCAST
from attention_transfer.functional import losses, maps
from attention_transfer.transfer import ActivationAttention, CrossEntropy, Transfer, TransferOutput

__all__ = ["BETA", "LOSSES", "FeatureExtractor", "Loss", "Setting", "StepBenchmark", "make_step"]

BETA = 1000.0

Loss = Callable[[], Tensor]
"""Computes the loss of one step, with the forward passes."""


@dataclass(frozen=True)
class Setting:
    """The precision of a step, and the optimizations that are switched on."""

    precision: str
    channels_last: bool = True
    folded: bool = True
    fused: bool = True
    compiled: bool = False


class FeatureExtractor(nn.Module):
    """A network that also returns the outputs of some of its modules, through permanent hooks.

    Example:
        >>> network = FeatureExtractor(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), ["0"])
        >>> logits, (features,) = network(torch.zeros(2, 3, 8, 8))
        >>> features.shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, network: nn.Module, points: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._features: dict[str, Tensor] = {}
        self._points = list(points)
        for point in points:
            network.get_submodule(point).register_forward_hook(self._store(point))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and the features of the points in their order."""
        logits = self.network(images)
        features = [self._features[point] for point in self._points]
        self._features.clear()
        return logits, features

    def _store(self, point: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._features[point] = output

        return hook


class StepBenchmark:
    """A pair of networks and a batch of random images, the same for the same arguments.

    Args:
        pair: ``student:teacher``.
        batch_size: images in the batch.
        setting: precision, memory format and other optimizations.
        classes: number of classes of both networks.

    Raises:
        InputError: a network is unknown.
    """

    def __init__(self, pair: str, batch_size: int, setting: Setting, classes: int = 10) -> None:
        self.setting, self._classes = setting, classes
        student, self._teacher = pair.split(":")
        self.student = self._build(student)
        images = torch.rand(batch_size, 3, 32, 32).to(device())
        self.images = images.to(memory_format=self._memory_format)
        self.labels = torch.randint(classes, (batch_size,)).to(device())

    @cached_property
    def teacher(self) -> nn.Module:
        """The frozen teacher, built on first use so that a student alone is alone in memory."""
        return self._build(self._teacher).requires_grad_(False).eval()

    @property
    def points(self) -> list[str]:
        """The attention points, which both networks share."""
        return list(self.student.attention_points)  # type: ignore[arg-type]

    def _build(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        network = models.build(name, self._classes).to(device())
        return network.to(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.setting.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context of the setting's precision."""
        bf16 = self.setting.precision == "bf16"
        return torch.autocast(device().type, torch.bfloat16, enabled=bf16)

    def transfer(self) -> Transfer:
        """Build the objective as runs do: folded teacher and compiled passes, if switched on."""
        terms = [CrossEntropy(), ActivationAttention(BETA)]
        example = self.images[:1]
        transfer = Transfer(self.student, self.teacher, terms, example_input=example)
        if self.setting.folded:
            transfer.optimize_teacher_for_inference(example, AUTOCAST.get(self.setting.precision))
        if self.setting.compiled:
            transfer.compile_passes()
        return transfer

    def compiled(self, network: nn.Module) -> nn.Module:
        """Compile the network, if that is switched on."""
        return torch.compile(network) if self.setting.compiled else network  # type: ignore[return-value]


def student_loss(bench: StepBenchmark) -> Loss:
    """Return the cross-entropy of the student alone."""
    student = bench.compiled(bench.student)

    def loss() -> Tensor:
        return functional.cross_entropy(student(bench.images).float(), bench.labels)

    return loss


def live_loss(bench: StepBenchmark) -> Loss:
    """Return the transfer's loss, with a teacher pass in every step."""
    if not bench.setting.fused:
        return _loss_by_autograd(bench, cached=False)
    transfer = bench.transfer()

    def loss() -> Tensor:
        out: TransferOutput = transfer(bench.images, bench.labels)
        return out.loss

    return loss


def cached_loss(bench: StepBenchmark) -> Loss:
    """Return the transfer's loss, with teacher targets computed before the first step."""
    if not bench.setting.fused:
        return _loss_by_autograd(bench, cached=True)
    transfer = bench.transfer()
    with bench.autocast():
        targets = transfer.targets(bench.images, bench.labels)

    def loss() -> Tensor:
        out: TransferOutput = transfer(bench.images, bench.labels, targets=targets)
        return out.loss

    return loss


LOSSES: dict[str, Callable[[StepBenchmark], Loss]] = {
    "student": student_loss,
    "live": live_loss,
    "cached": cached_loss,
}
"""Mode -> the loss of its steps."""


def make_step(mode: str, bench: StepBenchmark) -> Action:
    """Return a step's forward and backward pass, or for "teacher" its forward pass alone."""
    if mode == "teacher":
        return lambda: _teacher_forward(bench)
    compute_loss = LOSSES[mode](bench)

    def step() -> None:
        bench.student.zero_grad()
        with bench.autocast():
            loss = compute_loss()
        torch.autograd.backward(loss)

    return step


@torch.no_grad()
def _teacher_forward(bench: StepBenchmark) -> None:
    """Run the whole teacher in eval mode, without folding or other optimizations."""
    with bench.autocast():
        bench.teacher(bench.images)


def _loss_by_autograd(bench: StepBenchmark, cached: bool) -> Loss:
    """Return the same loss by the plain formulas, which autograd differentiates."""
    student = bench.compiled(FeatureExtractor(bench.student, bench.points))
    teacher = FeatureExtractor(bench.teacher, bench.points)

    @torch.no_grad()
    def compute_targets() -> list[Tensor]:
        return [maps.activation_map(features) for features in teacher(bench.images)[1]]

    with bench.autocast():
        cached_maps = compute_targets() if cached else None

    def loss() -> Tensor:
        teacher_maps = compute_targets() if cached_maps is None else cached_maps
        logits, features = student(bench.images)
        total = functional.cross_entropy(logits.float(), bench.labels)
        for layer, teacher_map in zip(features, teacher_maps, strict=True):
            pair = losses.attention_transfer(maps.activation_map(layer), teacher_map)
            total = total + BETA * pair
        return total

    return loss
