"""Students that save memory by activation checkpointing learn what they learn without it."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import timm.layers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.taps import attention_points
from small_transfers import IMAGES, LABELS, wide_resnet


def gradients(student: nn.Module, pairs: str, *, example: bool = True) -> list[Tensor | None]:
    """Return the gradients of the second of two steps of attention transfer."""
    torch.manual_seed(0)
    transfer = at.Transfer(
        student.train(),
        wide_resnet(2),
        [at.CrossEntropy(), at.ActivationAttention(1000.0, pairs=pairs)],
        example_input=IMAGES if example else None,
    )
    for _ in range(2):
        student.zero_grad()
        transfer(IMAGES, LABELS).loss.backward()
    return [parameter.grad for parameter in student.parameters()]


def assert_equal(one: list[Tensor | None], other: list[Tensor | None]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


@pytest.fixture(params=[False, True], ids=["non-reentrant", "reentrant"])
def reentrant(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether timm's checkpoints are reentrant."""
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(request.param)
    yield request.param
    timm.layers.set_reentrant_ckpt(before)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_gradients_of_timms_networks_are_unchanged(
    name: str, example: bool, reentrant: bool
) -> None:
    student = timm.create_model(name, num_classes=3)
    (first, *_, last) = [
        point.name for point in at.attention_points(student, (3, 64, 64)).recommended[1:]
    ]
    pairs = f"{first}:group1,{last}:group3"
    checkpointed = copy.deepcopy(student)
    checkpointed.set_grad_checkpointing()
    images, before = torch.rand(4, 3, 64, 64), student.state_dict()
    steps = []
    for network in (student, checkpointed):
        torch.manual_seed(0)
        transfer = at.Transfer(
            network.train(),
            wide_resnet(2),
            [at.ActivationAttention(1000.0, pairs=pairs)],
            example_input=images if example else None,
        )
        transfer(images).loss.backward()
        steps.append([one.grad for one in network.parameters() if one.grad is not None])
    assert before.keys() == checkpointed.state_dict().keys()
    assert len(steps[0]) > 10
    assert_equal(*steps)


@pytest.mark.parametrize(
    "name", ["resnet50", "efficientnet_b0", "tresnet_m", "visformer_tiny", "convnext_tiny"]
)
def test_points_are_those_without_checkpointing(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    before = attention_points(network, (3, 224, 224))
    network.set_grad_checkpointing()
    after = attention_points(network, (3, 224, 224))
    assert after.recommended == before.recommended
    assert after.flops == before.flops
    assert {point.name for point in after} == {point.name for point in before}


class Own(nn.Module):
    """A network that checkpoints by itself, in one of several ways."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        stage = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), stage, nn.Conv2d(8, 8, 3, 1, 1)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images).mean((2, 3)))

    def features(self, images: Tensor) -> Any:
        match self.how:
            case "sequential":
                return checkpoint_sequential(self.body, 2, images, use_reentrant=False)
            case "reentrant":
                images = images.clone().requires_grad_()
                return checkpoint_sequential(self.body, 2, images, use_reentrant=True)
            case "in training" if self.training:
                return checkpoint_sequential(self.body, 3, images, use_reentrant=False)
            case "by forward":
                return checkpoint(self.body.forward, images, use_reentrant=False)
            case "whole":
                return checkpoint(self.body, images, use_reentrant=False)
            case "whole, reentrant":
                return checkpoint(self.body, images.clone().requires_grad_(), use_reentrant=True)
        return self.body(images)


WAYS = ["sequential", "in training", "by forward", "whole", "reentrant", "whole, reentrant"]


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("how", WAYS)
def test_gradients_of_ones_own_checkpoints_are_unchanged(how: str, example: bool) -> None:
    inner = "body.2:group2," if "reentrant" not in how else ""
    pairs = f"{inner}body:group3"
    expected = gradients(Own(), pairs, example=example)
    assert_equal(gradients(Own(how), pairs, example=example), expected)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("how", ["reentrant", "whole, reentrant"])
def test_inside_a_reentrant_checkpoint_there_are_no_gradients(how: str, example: bool) -> None:
    with pytest.raises(InputError, match=r"'body\.0' .* without gradients.*use_reentrant=False"):
        gradients(Own(how), "body.0:group1", example=example)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_passes_read_the_last_module_too() -> None:
    expected = gradients(Own(), "body:group3")
    student = Own("sequential").train()
    terms = [at.CrossEntropy(), at.ActivationAttention(1000.0, pairs="body:group3")]
    transfer = at.Transfer(student, wide_resnet(2), terms, example_input=IMAGES)
    transfer.compile_passes()
    transfer(IMAGES, LABELS).loss.backward()
    for parameter, gradient in zip(student.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)  # type: ignore[arg-type]


def test_checkpointing_that_is_switched_on_later_is_noticed() -> None:
    student = Own()
    term = at.ActivationAttention(pairs="body:group3")
    transfer = at.Transfer(student, wide_resnet(2), [term])
    expected = transfer(IMAGES).loss
    student.how = "sequential"
    with pytest.raises(RuntimeError, match="checkpointing was switched on or off; run the pass ag"):
        transfer(IMAGES)
    assert torch.equal(transfer(IMAGES).loss, expected)


class Block(nn.Module):
    """A residual block, whose output is not its last module's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, images: Tensor) -> Any:
        return images + self.last(self.first(images))


class Bypassing(nn.Module):
    """Runs a block's forward directly, and the branches of a sequence side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.branches = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Any:
        features = checkpoint(self.block.forward, images, use_reentrant=False)
        assert isinstance(features, Tensor)
        features = features + sum(branch(features) for branch in self.branches)
        return self.head(self.layers[0](features).mean((2, 3)))


@pytest.mark.parametrize("point", ["block", "branches", "layers"])
def test_what_cannot_be_read_names_the_cause_and_the_way_out(point: str) -> None:
    expected = rf"'{point}' gave no output: its modules ran without it.*such as '{point}\.\w+'"
    with pytest.raises(InputError, match=expected):
        gradients(Bypassing(), f"{point}:group1", example=False)


def test_a_last_module_that_runs_elsewhere_too_is_not_taken_for_its_sequence() -> None:
    class Sharing(Own):
        def __init__(self) -> None:
            super().__init__("sequential")
            self.body.append(nn.ReLU())

        def forward(self, images: Tensor) -> Any:
            return super().forward(self.body[-1](images))

    with pytest.raises(InputError, match="'body' gave no output"):
        gradients(Sharing(), "body:group3", example=False)


def test_checkpointed_teachers_are_read_likewise() -> None:
    teachers = [timm.create_model("resnet10t", num_classes=3).eval() for _ in range(2)]
    teachers[1].load_state_dict(teachers[0].state_dict())
    teachers[1].set_grad_checkpointing()
    images = torch.rand(2, 3, 32, 32)
    targets = [
        at.Transfer(
            wide_resnet(1), teacher, [at.ActivationAttention(pairs="group3:layer4")]
        ).targets(images)
        for teacher in teachers
    ]
    assert all(map(torch.equal, targets[0].fields.values(), targets[1].fields.values()))


def checkpointed(num_classes: int = 3) -> nn.Module:
    network = timm.create_model("resnet10t", num_classes=num_classes)
    network.set_grad_checkpointing()
    return network


def test_a_checkpointed_student_on_the_command_line(small_runs: None) -> None:
    # In fp32: on a CPU the gradient of a 1x1 map's convolution in bf16 is at times not finite.
    flags = (
        "--student test_checkpointed_students:checkpointed --teacher wrn-10-1@random "
        "--pairs layer1:group1,layer2:group3 --epochs 1 --batch-size 24 --lr 0.01 "
        "--precision fp32 --no-compile --no-report --out run"
    )
    assert main(["distill", *flags.split()]) == 0
