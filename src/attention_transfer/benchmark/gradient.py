"""A step with gradient attention: autograd's double backward and ours, over a plain step.

For each network, precision and memory format:

- plain: forward and backward of the cross-entropy;
- autograd: the gradient-attention loss by ``torch.autograd.grad(..., create_graph=True)`` and
  nothing of ours;
- ours: ``GradientAttention`` in a ``Transfer``, the teacher's gradient given;
- ours, uncompiled: the same where no compiler is found;
- ours, live teacher: with the teacher's forward and backward pass;
- flip symmetry: ours, all classes.
"""

import sys
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer import models
from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import ratio, spread
from attention_transfer.benchmark.memory import in_use, peak, restart_peak
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.timing import Action, Say, device, in_turns, timed
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
"""A network's teacher, where it is not another one of its kind."""

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
FUSED_FROM = batch_norm._LARGE
NOTES = (
    "the teacher's gradient is given to autograd and ours; with a live teacher it is computed",
    "peak memory is what one more step adds to a process of its own",
)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Each network in fp32 and, if that is another, the precision asked for; in both formats."""
    keep_freed_memory()
    for network in config.networks:
        _networks(network, "contiguous")  # an unknown one is told before anything is measured
    precisions = dict.fromkeys([resolve_precision(config.precision), "fp32"])
    cases = {}
    for network in config.networks:
        for precision in precisions:
            for layout in FORMATS:
                name = f"{network}, {precision}, {layout}"
                say(f"gradient: {name}")
                cases[name] = _case(network, precision, layout, config)
    return Measured(cases=cases, notes=NOTES)


def _case(network: str, precision: str, layout: str, config: BenchmarkConfig) -> Case:
    kinds = _steps(network, precision, layout, config.batch_size)
    times = in_turns({kind: timed(step) for kind, step in kinds.items()}, config.repetitions)
    ratios = {
        "ours_over_plain": ratio(times["ours"], times["plain"]),
        "live_over_plain": ratio(times["ours, live teacher"], times["plain"]),
        "autograd_over_ours": ratio(times["autograd"], times["ours"]),
    }
    for kind in ("autograd", "ours, uncompiled", "flip symmetry"):
        ratios[f"{kind} over plain"] = ratio(times[kind], times["plain"])
    peaks = {}
    if config.memory:
        asked = network, precision, layout, config.batch_size
        peaks = {kind: in_own_process(_added_memory, *asked, kind) for kind in kinds}
    return Case(
        milliseconds={
            kind: spread([1000 * time for time in seconds]) for kind, seconds in times.items()
        },
        ratios=ratios,
        peak_megabytes=peaks,
    )


def _steps(network: str, precision: str, layout: str, batch_size: int) -> dict[str, Action]:
    """The kinds of step, on the same network and batch."""
    student, teacher = _networks(network, layout)
    shape = (batch_size, 3, 32, 32)
    images = torch.rand(shape, device=device()).to(memory_format=FORMATS[layout])
    labels = torch.randint(10, (batch_size,), device=device())
    autocast = torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")
    terms = [CrossEntropy(), GradientAttention(1.0)]
    transfer = Transfer(student, teacher, terms)
    with autocast:
        known = transfer.targets(images, labels)
    plain = Transfer(student, terms=[CrossEntropy()])
    flips = Transfer(student, terms=[CrossEntropy(), FlipSymmetry(1.0)])

    def step(
        transfer: Transfer, targets: Targets | None = None, fused_from: int = FUSED_FROM
    ) -> Action:
        def taken() -> None:
            student.zero_grad()
            with mock.patch.object(batch_norm, "_LARGE", fused_from):
                with autocast:
                    out = transfer(images, labels, targets=targets)
                out.loss.backward()

        return taken

    assert known.gradient is not None
    return {
        "plain": step(plain),
        "autograd": _by_autograd(student, images, labels, known.gradient, autocast),
        "ours": step(transfer, known),
        "ours, uncompiled": step(transfer, known, fused_from=sys.maxsize),
        "ours, live teacher": step(transfer),
        "flip symmetry": step(flips),
    }


def _by_autograd(
    student: nn.Module, images: Tensor, labels: Tensor, wanted: Tensor, autocast: torch.autocast
) -> Action:
    """The same loss with a graph of the first backward pass."""

    def step() -> None:
        student.zero_grad()
        leaf = images.detach().requires_grad_()
        with autocast:
            logits = student(leaf)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        distances = (gradient - wanted).flatten(1).norm(dim=1)
        torch.autograd.backward(loss / len(labels) + distances.mean() / 2)

    return step


def _networks(network: str, layout: str) -> tuple[nn.Module, nn.Module]:
    """Student and teacher, of the same kind."""
    torch.manual_seed(0)
    base, bare = network.removesuffix("-nobn"), "-nobn" if network.endswith("-nobn") else ""
    student = models.build(network, classes=10)
    teacher = models.build(TEACHERS.get(base, base) + bare, classes=10)
    for model in (student, teacher):
        model.to(device()).to(memory_format=FORMATS[layout])
    return student, teacher


def _added_memory(network: str, precision: str, layout: str, batch_size: int, kind: str) -> float:
    """By how much a step raises this process's memory at most.

    A step before it pays for what is once a process: kernels to compile, libraries to load.
    """
    step = _steps(network, precision, layout, batch_size)[kind]
    step()
    restart_peak()
    before = in_use()
    step()
    return peak() - before
