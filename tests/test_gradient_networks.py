"""Gradient terms on networks of unusual build: shared modules, weights that depend on the images,
inputs that do not, checkpointing; all held to plain autograd in float64.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import attention_transfer as at
from attention_transfer.double_backward import DoubleBackward
from attention_transfer.double_backward.batch_norm import BatchNorm
from attention_transfer.double_backward.convolution import Convolution
from attention_transfer.transfer import Targets

TERMS = [at.CrossEntropy(), at.InputGradientNorm(1.0), at.FlipSymmetry(1.0, "squared")]
LABELS = torch.tensor([0, 2, 1, 0])


def images() -> Tensor:
    return torch.rand(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Body(nn.Module):
    """A first layer, something in the middle, and a classifier."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = middle
        self.last = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))

    def forward(self, given: Tensor) -> Tensor:
        return self.last(self.middle(self.first(given)))


class Twice(nn.Module):
    """One convolution and one batch norm, each called twice, and known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.alias = self.step[1]

    def forward(self, features: Tensor) -> Tensor:
        return self.step(self.step(features))


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features).tanh())


class Dynamic(nn.Module):
    """A convolution whose kernel is a function of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, 4, 4, 3, 3) / 3)
        self.gate = nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        share = self.gate(features.mean(dim=(0, 2, 3))).softmax(dim=0)
        kernel = (share.view(2, 1, 1, 1, 1) * self.kernels).sum(dim=0)
        return functional.conv2d(features, kernel, padding=1)


class Conditional(nn.Module):
    """A batch norm whose scale is a function of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, features: Tensor) -> Tensor:
        scale = self.scale(features.mean(dim=(0, 2, 3)))
        return functional.batch_norm(features, None, None, scale, None, training=True)


class Positions(nn.Module):
    """Learned positions, cut to the features' size; their values are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 4, 9, 9))

    def forward(self, features: Tensor) -> Tensor:
        return self.table[:, :, : features.shape[2], : features.shape[3]]


class Stop(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


class Mask(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return (features > 0).to(features.dtype)


class Like(nn.Module):
    """Takes two inputs, one for its size alone."""

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        return functional.interpolate(features, reference.shape[2:])


class Beside(nn.Module):
    """The features, with what an inner module makes of them that carries no gradient."""

    def __init__(self, inner: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.join, self.like = inner, join, Like()

    def forward(self, features: Tensor) -> Tensor:
        return self.like(self.join(features, self.inner(features)), features)


class Raw(nn.Module):
    """The batch norm under ``functional.batch_norm``."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.batch_norm(features, None, None, None, None, True, 0.1, 1e-5, False)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
        self.use_reentrant = use_reentrant

    def forward(self, features: Tensor) -> Tensor:
        result = checkpoint(self.inner, features, use_reentrant=self.use_reentrant)
        assert isinstance(result, Tensor)
        return result


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "shared modules": Twice,
    "tied weights": Tied,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
    "dynamic convolution": Dynamic,
    "conditional batch norm": Conditional,
    "torch.batch_norm": Raw,
    "learned positions": lambda: Beside(Positions(), torch.add),
    "a gate without gradient": lambda: Beside(Stop(), lambda x, gate: x * gate.sigmoid()),
    "checkpointing": lambda: Checkpointed(use_reentrant=False),
    "a mask": lambda: Beside(Mask(), torch.mul),
}


def network(middle: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return Body(middle()).double()


def plain(student: nn.Module, pixels: Tensor, chosen: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """The three terms' sum by autograd alone, the flipped pass on a copy's statistics."""

    def gradient(pixels: Tensor) -> tuple[Tensor, Tensor]:
        leaf = pixels.clone().requires_grad_()
        loss = functional.cross_entropy(student(leaf), LABELS, reduction="sum")
        return loss, torch.autograd.grad(loss, leaf, create_graph=True)[0]

    loss, straight = gradient(pixels)
    flipped = gradient(pixels.flip(3))[1].flip(3)
    counts = torch.isin(LABELS, torch.tensor(chosen)).double()
    norm = straight.flatten(1).norm(dim=1).mean() / 2
    squares = (straight - flipped).flatten(1).square().sum(dim=1)
    return loss / len(pixels) + norm + (squares * counts).mean() / 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_it_is_autograds(middle: str, training: bool) -> None:
    student = network(MIDDLES[middle]).train(training)
    reference = deepcopy(student)
    parameters, state = list(student.parameters()), deepcopy(student.state_dict())
    transfer = at.Transfer(student, terms=TERMS, example_input=images())
    assert all(weight.grad is None for weight in parameters)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())

    loss = transfer(images(), LABELS).loss
    loss.backward()
    assert [id(weight) for weight in student.parameters()] == [id(weight) for weight in parameters]
    expected = plain(reference, images())
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for weight, theirs in zip(parameters, reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, theirs.grad, rtol=1e-9, atol=1e-12)


class WrittenOut(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return functional.relu6(features + 3) / 6


@pytest.mark.parametrize("inplace", [True, False])
def test_hard_sigmoid_has_a_second_derivative_here(inplace: bool) -> None:
    student, reference = network(lambda: nn.Hardsigmoid(inplace)), network(WrittenOut)
    at.Transfer(student, terms=TERMS)(images(), LABELS).loss.backward()
    plain(reference, images()).backward()
    for weight, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_running_statistics_of_a_shared_batch_norm_move_by_the_straight_pass_alone() -> None:
    student = network(Twice)
    at.Transfer(student, terms=TERMS)(images(), LABELS)
    assert int(student.middle.alias.num_batches_tracked) == 2


def test_batch_statistics_of_the_raw_function_keep_all_images_in_the_flipped_pass() -> None:
    student = network(Raw)
    terms = [*TERMS[:2], at.FlipSymmetry(1.0, "squared", classes=[0])]
    loss = at.Transfer(student, terms=terms)(images(), LABELS).loss
    torch.testing.assert_close(loss.double(), plain(student, images(), (0,)), rtol=1e-6, atol=0)


def test_a_batch_without_chosen_images_takes_part_all_the_same() -> None:
    """With statistics over processes, a pass left out by one of them would hold up the others."""
    student, passes = network(lambda: nn.BatchNorm2d(4)), []
    transfer = at.Transfer(
        student, terms=[at.FlipSymmetry(1.0, classes=[1])], example_input=images()
    )
    student.register_forward_hook(lambda *_: passes.append(1))
    loss = transfer(images()[:2], LABELS[:2]).loss
    loss.backward()
    assert (len(passes), float(loss.detach())) == (2, 0.0)
    assert not student.first.weight.grad.any()


class DetachedFunction(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.detach() * 2


class OnceFunction(DetachedFunction):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class DetachedInside(nn.Module):
    """The fault is beside inner modules whose gradient goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.inner(features) + DetachedFunction.apply(features)


class OnceInTraining(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        return OnceFunction.apply(features)


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


FAULTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "detached beside inner modules": (
        lambda: Body(DetachedInside()),
        r"'middle' \(DetachedInside\) has a gradient that is detached",
    ),
    "in training alone": (
        lambda: Body(OnceInTraining()),
        r"'middle' \(OnceInTraining\) has no second derivative",
    ),
    "positions before it": (
        lambda: Body(nn.Sequential(Beside(Positions(), torch.add), OnceInTraining())),
        r"'middle.1' \(OnceInTraining\) has no second derivative",
    ),
    "reentrant": (
        lambda: Body(Checkpointed(use_reentrant=True)),
        "activation checkpointing.*switch it off",
    ),
    "two outputs": (
        lambda: nn.Sequential(nn.Flatten(), Pair()),
        "returns a tuple, expected logits",
    ),
}


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_before_training(fault: str) -> None:
    make, expected = FAULTS[fault]
    with pytest.raises(at.InputError, match=expected):
        at.Transfer(make(), terms=TERMS[1:])(images().float(), LABELS)


def test_the_check_is_under_the_users_autocast() -> None:
    student = Body(nn.BatchNorm2d(4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = at.Transfer(student, terms=TERMS)(images().float(), LABELS).loss
    loss.backward()
    assert student.first.weight.grad.isfinite().all()


def test_labels_of_several_classes_are_refused() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0]] * 4)
    terms = [at.BinaryCrossEntropy(), at.InputGradientNorm(1.0)]
    with pytest.raises(
        at.InputError, match=r"do not sum to 1.*BinaryCrossEntropy for images of several"
    ):
        at.Transfer(Body(nn.Tanh()), terms=terms)(images().float(), labels)


@pytest.mark.parametrize("gradient", [None, torch.rand(1, 3, 6, 6), torch.rand(4, 1, 6, 6)])
def test_targets_without_a_fitting_gradient_are_refused(gradient: Tensor | None) -> None:
    student, teacher = Body(nn.Tanh()), Body(nn.Tanh())
    targets = Targets(logits=torch.rand(4, 3), gradient=gradient)
    with pytest.raises(at.InputError, match=r"use those of transfer\.targets"):
        at.Transfer(student, teacher, [at.GradientAttention(1.0)])(
            images().float(), LABELS, targets=targets
        )


def test_convolutions_and_batch_norms_are_ours() -> None:
    """By their names in the graph: autograd's own would pass every other test, slowly."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with DoubleBackward():
        output = layers(images().float())
    assert output.grad_fn.name() == BatchNorm.__name__ + "Backward"
    assert output.grad_fn.next_functions[0][0].name() == Convolution.__name__ + "Backward"
