"""Labels that a loss cannot take are refused in one line, which names the classes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.errors import InputError
from small_transfers import IMAGES, LABELS, transfer_of, wide_resnet

SOFT = torch.full((4, 3), 1 / 3)


def loss(term: at.Term, labels: object) -> Tensor:
    return transfer_of(term)(IMAGES, labels).loss


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            torch.tensor([1, 2, 3, 1]),
            r"got the index 3, expected 0 to 2.*count from 1.* labels - 1",
        ),
        (torch.tensor([0, 1, 254, 0], dtype=torch.uint8), "got the index 254, expected 0 to 2"),
        (LABELS.to(torch.complex64), r"complex64 of shape \(4,\); indices are integers"),
        (torch.tensor([[2.0, -1.0, 0.0]] * 4), "negative values or nan; give probabilities"),
        (torch.full((4, 3), float("nan")), "negative values or nan; give probabilities"),
        (torch.full((4, 4), 0.25), r"logits \(4, 3\), got torch.float32 of shape \(4, 4\)"),
        (SOFT.half() * 1.1, "do not sum to 1"),
    ],
)
def test_cross_entropy(labels: Tensor, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        loss(at.CrossEntropy(), labels)
    assert "\n" not in str(error.value)
    for term in (at.GradientAttention(1.0), at.FlipSymmetry(1.0), at.InputGradientNorm(1.0)):
        with pytest.raises(InputError, match=expected):
            loss(term, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_soft_labels_of_many_classes_in_any_precision(dtype: torch.dtype) -> None:
    labels = torch.rand(8, 1000, generator=torch.Generator().manual_seed(0)).softmax(1).to(dtype)
    assert at.losses.cross_entropy(torch.zeros(8, 1000), labels).isfinite()


class PerPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Any:
        return self.logits(images)


def test_labels_by_position() -> None:
    def value(labels: Tensor, ignored: int = -100) -> Tensor:
        terms = [at.CrossEntropy(ignore_index=ignored)]
        return at.Transfer(PerPosition(), None, terms)(IMAGES, labels).loss

    labels = torch.zeros(4, 16, 16, dtype=torch.int32)
    labels[:, 3] = 255
    assert value(labels, 255) > 0
    with pytest.raises(InputError, match="got the index 255, expected 0 to 2"):
        value(labels)
    with pytest.raises(InputError, match=r"expected 0 to 2, or 255 for a label that does not"):
        value(labels + 3, 255)
    with pytest.raises(InputError, match=r"indices \(4, 16, 16\).*got .* of shape \(4, 8, 8\)"):
        value(labels[:, ::2, ::2], 255)


@pytest.mark.parametrize("labels", [SOFT * 9, SOFT - 1, SOFT * float("nan")])
def test_binary_cross_entropy(labels: Tensor) -> None:
    with pytest.raises(InputError, match="takes labels from 0 to 1, got values from"):
        loss(at.BinaryCrossEntropy(), labels)
    assert loss(at.BinaryCrossEntropy(), SOFT > 0).isfinite()


def test_ignored_labels_of_distillation_are_integers() -> None:
    with pytest.raises(InputError, match=r"got torch.float32 of shape \(4,\)"):
        loss(at.KnowledgeDistillation(ignore_index=0), LABELS.float())


@pytest.mark.parametrize("index", ["255", 1.5, True])
@pytest.mark.parametrize("term", [at.CrossEntropy, at.KnowledgeDistillation])
def test_ignore_index_is_an_integer(term: Any, index: Any) -> None:
    with pytest.raises(InputError, match="ignore_index must be an integer, such as 255, got"):
        term(ignore_index=index)


@pytest.mark.parametrize("example", [None, IMAGES[:1]])
def test_a_frozen_student_is_refused(example: Tensor | None) -> None:
    student = wide_resnet().requires_grad_(False)
    with pytest.raises(InputError, match=r"no parameter of the student requires a gradient"):
        at.Transfer(student, wide_resnet(2), [at.ActivationAttention()], example_input=example)


def test_a_point_in_a_frozen_part_is_refused_by_the_first_step() -> None:
    student = wide_resnet()
    student.stem.requires_grad_(False)
    student.group1.requires_grad_(False)
    transfer = at.Transfer(student, wide_resnet(2), [at.ActivationAttention()])
    with torch.no_grad():
        transfer(IMAGES)
    with pytest.raises(InputError, match="point 'group1' is in a part that is frozen"):
        transfer(IMAGES)
