"""A step with gradient attention, by autograd's double backward and by ours, over a plain step.

The kinds of step, for each network, precision and memory format:

- plain: forward and backward of the cross-entropy;
- autograd: the gradient-attention loss by ``torch.autograd.grad(..., create_graph=True)``, with
  none of our code;
- ours: ``GradientAttention`` in a ``Transfer``, with the teacher's gradient given;
- ours, uncompiled: the same where no compiler is found;
- ours, live teacher: with the teacher's forward and backward pass;
- flip symmetry: ours, on all classes.
"""

import sys
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer import models
from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import milliseconds, ratio
from attention_transfer.benchmark.memory import memory_in_use, peak_memory, reset_peak_memory
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.timing import Action, Progress, device, interleave, timed
from attention_transfer.config import BenchmarkConfig
from attention_transfer.double_backward import batch_norm
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.transfer import (
    CrossEntropy,
    FlipSymmetry,
    GradientAttention,
    Targets,
    Transfer,
)

__all__ = ["measure"]

TEACHERS = {"wrn-16-1": "wrn-16-2"}
"""Network -> its teacher, if that is not a second network of the same kind."""

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
FUSED_FROM = batch_norm._LARGE
NOTES = (
    "autograd and ours are given the teacher's gradient; with a live teacher it is computed",
    "peak memory is what one more step adds to a process of its own",
)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Measure each network in the configured precision and in fp32, in both memory formats.

    Raises:
        InputError: a network is unknown.
    """
    keep_freed_memory()
    for network in config.networks:
        _build_networks(network, "contiguous")  # refuses unknown names before any measurement
    precisions = dict.fromkeys([resolve_precision(config.precision), "fp32"])
    cases = {}
    for network in config.networks:
        for precision in precisions:
            for layout in FORMATS:
                name = f"{network}, {precision}, {layout}"
                progress(f"gradient: {name}")
                cases[name] = _measure_network(network, precision, layout, config)
    return Measured(cases=cases, notes=NOTES)


def _measure_network(network: str, precision: str, layout: str, config: BenchmarkConfig) -> Case:
    arguments = network, precision, layout, config.batch_size
    steps = _steps(*arguments)
    times = interleave({kind: timed(step) for kind, step in steps.items()}, config.repetitions)
    ratios = {
        "ours_over_plain": ratio(times["ours"], times["plain"]),
        "live_over_plain": ratio(times["ours, live teacher"], times["plain"]),
        "autograd_over_ours": ratio(times["autograd"], times["ours"]),
    }
    for kind in ("autograd", "ours, uncompiled", "flip symmetry"):
        ratios[f"{kind} over plain"] = ratio(times[kind], times["plain"])
    peaks = {
        kind: in_own_process(_added_memory, *arguments, kind) for kind in steps if config.memory
    }
    return Case(milliseconds=milliseconds(times), ratios=ratios, peak_megabytes=peaks)


def _steps(network: str, precision: str, layout: str, batch_size: int) -> dict[str, Action]:
    """Return the kinds of step, all on one network and one batch."""
    student, teacher = _build_networks(network, layout)
    shape = (batch_size, 3, 32, 32)
    images = torch.rand(shape, device=device()).to(memory_format=FORMATS[layout])
    labels = torch.randint(10, (batch_size,), device=device())
    autocast = torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")
    transfer = Transfer(student, teacher, [CrossEntropy(), GradientAttention(1.0)])
    with autocast:
        teacher_targets = transfer.targets(images, labels)
    plain = Transfer(student, terms=[CrossEntropy()])
    flips = Transfer(student, terms=[CrossEntropy(), FlipSymmetry(1.0)])

    def step(
        transfer: Transfer, targets: Targets | None = None, fused_from: int = FUSED_FROM
    ) -> Action:
        def run() -> None:
            student.zero_grad()
            with mock.patch.object(batch_norm, "_LARGE", fused_from):
                with autocast:
                    out = transfer(images, labels, targets=targets)
                out.loss.backward()

        return run

    assert teacher_targets.gradient is not None
    return {
        "plain": step(plain),
        "autograd": _autograd_step(student, images, labels, teacher_targets.gradient, autocast),
        "ours": step(transfer, teacher_targets),
        "ours, uncompiled": step(transfer, teacher_targets, fused_from=sys.maxsize),
        "ours, live teacher": step(transfer),
        "flip symmetry": step(flips),
    }


def _autograd_step(
    student: nn.Module,
    images: Tensor,
    labels: Tensor,
    teacher_gradient: Tensor,
    autocast: torch.autocast,
) -> Action:
    """Return a step of the same loss through a graph of the first backward pass."""

    def step() -> None:
        student.zero_grad()
        leaf = images.detach().requires_grad_()
        with autocast:
            logits = student(leaf)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        distances = (gradient - teacher_gradient).flatten(1).norm(dim=1)
        torch.autograd.backward(loss / len(labels) + distances.mean() / 2)

    return step


def _build_networks(network: str, layout: str) -> tuple[nn.Module, nn.Module]:
    """Build the student and its teacher, both with or both without batch norm."""
    torch.manual_seed(0)
    base, suffix = network.removesuffix("-nobn"), "-nobn" if network.endswith("-nobn") else ""
    student = models.build(network, classes=10)
    teacher = models.build(TEACHERS.get(base, base) + suffix, classes=10)
    for model in (student, teacher):
        model.to(device()).to(memory_format=FORMATS[layout])
    return student, teacher


def _added_memory(network: str, precision: str, layout: str, batch_size: int, kind: str) -> float:
    """Return the megabytes that a step adds at its peak to this process.

    An earlier step pays for what a process needs once: compiled kernels and loaded libraries.
    """
    step = _steps(network, precision, layout, batch_size)[kind]
    step()
    reset_peak_memory()
    before = memory_in_use()
    step()
    return peak_memory() - before
