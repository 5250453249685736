"""What gradient attention cannot do is said before training, with the module and the way out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import attention_transfer as at

TERMS = [at.CrossEntropy(), at.InputGradientNorm(1.0)]


class OnceFunction(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class DetachedFunction(OnceFunction):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.detach() * 2


class Once(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return OnceFunction.apply(features)


class Detached(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return DetachedFunction.apply(features)


class Cut(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


class Frozen(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return features * 2


class Rounded(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.argmax(dim=1, keepdim=True).expand_as(features).float()


class Overwriting(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mul_(2)


class InFunctional(nn.Module):
    """The fault is in a module that has children."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return OnceFunction.apply(self.inner(features))


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    ends = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, ends)


IMAGES, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([0, 2])

FAULTS: dict[str, tuple[nn.Module, str]] = {
    "once": (network(Once()), r"'1' \(Once\) has no second derivative .*replace it"),
    "detached backward": (network(Detached()), r"'1' \(Detached\) has a gradient that is detached"),
    "detach": (network(Cut()), r"'1' \(Cut\) cuts the gradient .*does not depend on the images"),
    "no_grad": (network(Frozen()), r"'1' \(Frozen\) cuts the gradient"),
    "argmax": (network(Rounded()), r"'1' \(Rounded\) cuts the gradient"),
    "sigmoid overwritten": (
        network(nn.Sigmoid(), Overwriting()),
        r"output of '1' \(Sigmoid\) is overwritten in place.*use inplace=False",
    ),
    "images overwritten": (
        nn.Sequential(Overwriting(), network()),
        r"the images are overwritten in place.*write x = \(x - mean\) / std",
    ),
    "functional": (network(InFunctional()), r"'1' \(InFunctional\) has no second derivative"),
}


@pytest.mark.parametrize("built", ["with an example", "at the first call"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_before_training(fault: str, built: str) -> None:
    student, expected = FAULTS[fault]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images = IMAGES.clone()
    with pytest.raises(at.InputError, match=expected):
        if built == "with an example":
            at.Transfer(student, terms=TERMS, example_input=images)
        else:
            at.Transfer(student, terms=TERMS)(images, LABELS)
    assert student.training
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize("middle", [nn.ReLU(inplace=True), nn.Dropout(0.5), nn.BatchNorm2d(4)])
def test_the_check_leaves_no_trace(middle: nn.Module) -> None:
    student = network(middle)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    at.Transfer(student, terms=TERMS, example_input=IMAGES)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_that_overwrites_the_images_is_refused() -> None:
    teacher = nn.Sequential(Overwriting(), network())
    transfer = at.Transfer(network(), teacher, [at.KnowledgeDistillation()])
    with pytest.raises(at.InputError, match=r"Sequential overwrote its inputs in place"):
        transfer(IMAGES.clone(), LABELS)


def test_a_teacher_that_cuts_gradients_is_refused() -> None:
    transfer = at.Transfer(network(), network(Cut()), [at.GradientAttention(1.0)])
    with pytest.raises(at.InputError, match="does not depend on the images"):
        transfer(IMAGES, LABELS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(at.InputError, match=r"got torch.*give floating-point images"):
        at.Transfer(network(), terms=TERMS)(IMAGES.to(dtype), LABELS)


def test_inference_mode_is_refused() -> None:
    with pytest.raises(at.InputError, match=r"use torch.no_grad\(\)"), torch.inference_mode():
        at.Transfer(network(), terms=TERMS)(IMAGES, LABELS)


@pytest.mark.parametrize("labels", [None, LABELS[:1], torch.rand(2, 4).softmax(1)])
def test_labels_must_fit(labels: Tensor | None) -> None:
    with pytest.raises(
        ValueError, match=r"takes labels of class indices \(2,\) or of probabilities"
    ):
        at.Transfer(network(), terms=[at.InputGradientNorm(1.0)])(IMAGES, labels)


@pytest.mark.parametrize(
    ("term", "settings", "expected"),
    [
        (at.GradientAttention, {"beta": -1.0}, "beta must be a finite number of at least 0"),
        (at.GradientAttention, {"beta": float("nan")}, "beta must be a finite number"),
        (at.GradientAttention, {"beta": 1, "form": "code"}, "unknown form 'code'; known: paper"),
        (at.GradientAttention, {"beta": 1, "map": "mean"}, "unknown map 'mean'"),
        (at.GradientAttention, {"beta": 1, "power": 0}, "power must be a finite number above 0"),
        (at.FlipSymmetry, {"beta": -1.0}, "beta must be"),
        (at.FlipSymmetry, {"beta": 1, "axis": 1}, 'axis must be "horizontal" or "vertical"'),
        (at.FlipSymmetry, {"beta": 1, "axis": "h"}, 'axis must be "horizontal" or "vertical"'),
        (at.FlipSymmetry, {"beta": 1, "classes": ()}, "classes is empty"),
        (at.InputGradientNorm, {"beta": float("inf")}, "beta must be"),
    ],
)
def test_settings_are_checked(term: Any, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(at.InputError, match=expected):
        term(**settings)


def test_teachers_of_other_classes_are_refused() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    transfer = at.Transfer(network(), teacher, [at.GradientAttention(1.0)])
    with pytest.raises(
        at.InputError, match="gradient attention compares logits of the same classes"
    ):
        transfer(IMAGES, LABELS)


def test_classes_need_indices_within_the_networks() -> None:
    term = at.FlipSymmetry(1.0, classes=(0, 7))
    with pytest.raises(at.InputError, match="among the network's 0 to 2"):
        at.Transfer(network(), terms=[term])(IMAGES, LABELS)
    term = at.FlipSymmetry(1.0, classes=(0, 1))
    with pytest.raises(at.InputError, match="chooses images by class index"):
        at.Transfer(network(), terms=[term])(IMAGES, torch.rand(2, 3).softmax(1))


def test_gradient_attention_maps_are_of_the_input_alone() -> None:
    with pytest.raises(at.InputError, match="read at the images, got points"):
        at.attention_maps(network(), IMAGES, points=["0"], attention="gradient")
    with pytest.raises(at.InputError, match="needs no labels"):
        at.attention_maps(network(), IMAGES, points=["0"], labels=LABELS)
    with pytest.raises(at.InputError, match='"activation" or "gradient"'):
        at.attention_maps(network(), IMAGES, attention="grad")  # type: ignore[arg-type]


def test_gradient_attention_maps_are_f_of_the_gradient() -> None:
    student = network(nn.BatchNorm2d(4))
    found = at.attention_maps(student, IMAGES, attention="gradient", labels=LABELS, power=1)
    leaf = IMAGES.clone().requires_grad_()
    loss = nn.functional.cross_entropy(student.eval()(leaf), LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(found["input"], gradient.abs().sum(dim=1))
    predicted = student(IMAGES).argmax(dim=1)
    torch.testing.assert_close(
        at.attention_maps(student, IMAGES, attention="gradient")["input"],
        at.attention_maps(student, IMAGES, attention="gradient", labels=predicted)["input"],
    )


PROCESSES = """
import os, sys, torch
from torch import nn
import attention_transfer as at
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
rank = torch.distributed.get_rank()
def network():
    middle = nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.Linear(144, 3)).double()
student, teacher = network(), network()
images, labels = torch.rand(8, 3, 8, 8).double(), torch.arange(8) % 3
terms = [at.CrossEntropy(), at.GradientAttention(1.0), at.FlipSymmetry(0.5)]
transfer = at.Transfer(student, teacher, terms)
shards = []
for part in range(2):
    student.zero_grad()
    transfer(images[part::2], labels[part::2]).loss.backward()
    shards.append([weight.grad.clone() for weight in student.parameters()])
student.zero_grad()
wrapped = nn.parallel.DistributedDataParallel(transfer)
wrapped(images[rank::2], labels[rank::2]).loss.backward()
for weight, one, other in zip(student.parameters(), *shards):
    torch.testing.assert_close(weight.grad, (one + other) / 2, rtol=1e-9, atol=1e-12)
from torch.distributed.fsdp import fully_shard
sharded = at.Transfer(fully_shard(network().float()), terms=[at.InputGradientNorm(1.0)])
try:
    sharded(images.float(), labels)
except at.InputError as error:
    assert "FSDP does not support" in str(error), error
else:
    raise AssertionError("FSDP was not refused")
print("fine", rank)
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_the_mean_of_the_shards_gradients(tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fine") == 2
