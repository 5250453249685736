"""beta="auto" of terms over input gradients: weighed by gradients in the student's weights."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.runs import Run
from attention_transfer.runs.record import read_metrics

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.Softplus(), nn.Flatten(), nn.Linear(36 * width, 3)
    )


def transfer_of(*terms: at.Term) -> at.Transfer:
    return at.Transfer(network(4), network(8), [at.CrossEntropy(), *terms])


def step(transfer: at.Transfer, optimizer: Any = None) -> at.TransferOutput:
    transfer.zero_grad()
    out = transfer(IMAGES, LABELS)
    out.loss.backward()
    if optimizer is not None:
        optimizer.step()
    return out


def input_gradient(student: nn.Module, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    loss = functional.cross_entropy(student(images), LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    return gradient.flatten(1)


def norm_in_weights(student: nn.Module, loss: Tensor) -> float:
    gradients = torch.autograd.grad(
        loss, list(student.parameters()), retain_graph=True, allow_unused=True
    )
    known = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(known).sum().sqrt())


def test_the_weights_are_those_of_an_independent_computation() -> None:
    transfer = transfer_of(
        at.ActivationAttention(beta=20.0, pairs="0:0"),
        at.GradientAttention("auto", form="squared"),
        at.InputGradientNorm("auto"),
    )
    optimizer = torch.optim.SGD(transfer.parameters(), 0.05)
    names, means = ("gradient_attention", "input_gradient_norm"), list[list[float]]()
    expected = [0.0, 0.0]
    for _ in range(4):
        student, teacher = copy.deepcopy(transfer.student), transfer.teacher.network
        maps = [
            functional.normalize(net[0](IMAGES).square().sum(1).flatten(1))
            for net in (student, teacher)
        ]
        rest = functional.cross_entropy(student(IMAGES), LABELS)
        rest = rest + 20 * functional.mse_loss(maps[0], maps[1].detach())
        own, of_teacher = (input_gradient(net, IMAGES) for net in (student, teacher))
        losses = [
            (own - of_teacher.detach()).square().sum(1).mean() / 2,
            own.norm(dim=1).mean() / 2,
        ]
        values = [norm_in_weights(student, loss) for loss in (rest, *losses)]
        out = step(transfer, optimizer)
        found = [float(out.betas[name]["weights"]) for name in names]
        assert found == pytest.approx(expected, rel=1e-3)
        assert out.loss.item() == pytest.approx(sum(map(float, out.terms.values())))
        means = (
            values if not means else [0.9 * a + 0.1 * b for a, b in zip(means, values, strict=True)]
        )
        expected = [means[0] / (math.sqrt(2) * term) for term in means[1:]]
    assert all(0 < beta < 1e6 for beta in expected)


def test_micro_batches_and_processes_give_the_weights_of_the_whole_batch() -> None:
    """The norm is that of the sum of the parts' gradients, and not the sum of their norms."""
    whole, micro_batches, *processes = (
        transfer_of(at.FlipSymmetry("auto"), at.GradientAttention("auto")) for _ in range(4)
    )
    for transfer in (whole, micro_batches, *processes):
        transfer.gradient_balance.steps_by_hand = True
    whole(IMAGES, LABELS).loss.backward()
    whole.gradient_balance.end_step()
    parts = slice(0, 2), slice(2, 6)
    for part, process in zip(parts, processes, strict=True):
        micro_batches(IMAGES[part], LABELS[part]).loss.backward()
        process(IMAGES[part], LABELS[part]).loss.backward()
    micro_batches.gradient_balance.end_step()
    told: list[list[Tensor]] = []
    for process in processes:
        own: list[Tensor] = []
        copy.deepcopy(process.gradient_balance).end_step(
            lambda value, own=own: own.append(value) or value
        )
        told.append(own)
    sums = [sum(values) for values in zip(*told, strict=True)]
    for process in processes:
        given = iter(sums)
        process.gradient_balance.end_step(lambda _, given=given: next(given))
    for name in ("flip_symmetry", "gradient_attention"):
        expected = whole.gradient_balance.beta(name)
        assert expected > 0
        for transfer in (micro_batches, *processes):
            assert torch.allclose(transfer.gradient_balance.beta(name), expected, rtol=1e-4)


def test_measuring_changes_no_gradient() -> None:
    watched, plain = (transfer_of(at.GradientAttention(0.3)) for _ in range(2))
    watched.measure_gradients()
    for _ in range(2):
        step(watched)
        step(plain)
        for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
    (ratio,) = watched.gradient_balance.ratios({"gradient_attention": 0.3})[
        "gradient_attention"
    ].values()
    assert 0 < ratio < 10


def test_a_run_prints_and_records_the_weight_and_the_share(
    tmp_path: Path, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--epochs=1", "--batch-size=10", "--no-report", "--precision=fp32"]
    arguments += ["--student=wrn-10-1", f"--teacher={teacher.folder}", "--attention=gradient"]
    arguments += ["--gradient-beta=auto", "--input-gradient-norm-beta=0.01", f"--out={out}"]
    assert main(["distill", *arguments]) == 0
    printed = capsys.readouterr()
    assert "gradient attention: weight auto" in printed.out + printed.err
    row = read_metrics(out / "metrics.jsonl")[-1]
    assert set(row.betas) == {"gradient_attention"}
    assert row.betas["gradient_attention"]["weights"] > 0
    assert row.gradient_ratios["gradient_attention"]["weights"] > 0
    assert 0 < row.gradient_ratios["input_gradient_norm"]["weights"] < 1


def test_a_constant_weight_that_drowns_the_labels_is_warned_of(
    tmp_path: Path, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--epochs=1", "--batch-size=10", "--no-report", "--precision=fp32"]
    arguments += ["--student=wrn-10-1", "--input-gradient-norm-beta=1e4", "--attention=none"]
    assert (
        main(["distill", *arguments, f"--teacher={teacher.folder}", f"--out={tmp_path / 'run'}"])
        == 0
    )
    printed = capsys.readouterr()
    assert "input_gradient_norm in the student's weights: its gradient" in printed.out + printed.err
