"""Gradient attention, flip symmetry and the input gradient's norm, in the objective."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.functional import losses, maps


def network(seed: int, *middle: nn.Module, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1), *(middle or (nn.Tanh(),)), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 25, classes)).double()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(count, 2, 5, 5, dtype=torch.float64, generator=generator)
    return images, torch.arange(count) % 3


def plain_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """J by autograd alone, image by image."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        leaf = image[None].clone().requires_grad_()
        loss = functional.cross_entropy(model(leaf), label[None])
        rows.append(torch.autograd.grad(loss, leaf, create_graph=True)[0])
    return torch.cat(rows)


def half(difference: Tensor, form: str) -> Tensor:
    norms = difference.flatten(1).norm(dim=1)
    return ((norms if form == "paper" else norms**2) / 2).mean()


@pytest.mark.parametrize("form", ["paper", "squared"])
def test_gradient_attention_is_equation_4(form: Any) -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    transfer = at.Transfer(student, teacher, [at.CrossEntropy(), at.GradientAttention(3.0, form)])
    out = transfer(images, labels)
    difference = plain_gradient(student, images, labels) - plain_gradient(teacher, images, labels)
    expected = half(difference, form)
    torch.testing.assert_close(out.raw_terms["gradient_attention"], expected.detach())
    assert out.terms["gradient_attention"] == 3 * out.raw_terms["gradient_attention"]
    weights = list(student.parameters())
    loss = functional.cross_entropy(student(images), labels) + 3 * expected
    oracle = torch.autograd.grad(loss, weights)
    out.loss.backward()
    for weight, gradient in zip(weights, oracle, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-12)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_the_squared_forms_gradient_is_the_papers() -> None:
    """beta (J_S - J_T) d^2 L / dW dx / N, as a product of a vector and the mixed derivative."""
    student, teacher, (images, labels) = network(0), network(1), batch()
    out = at.Transfer(student, teacher, [at.GradientAttention(2.0, "squared")])(images, labels)
    out.loss.backward()
    gradient = plain_gradient(student, images, labels)
    difference = (gradient - plain_gradient(teacher, images, labels)).detach()
    weight = student[0].weight
    (expected,) = torch.autograd.grad((difference * gradient).sum() * 2.0 / len(images), weight)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["paper", "squared"])
@pytest.mark.parametrize("axis", ["horizontal", "vertical", 2, 3, -1, -2])
def test_flip_symmetry_is_equation_6(form: Any, axis: Any) -> None:
    student, (images, labels) = network(0), batch()
    out = at.Transfer(student, terms=[at.FlipSymmetry(1.0, form, axis)])(images, labels)
    number = {"horizontal": 3, "vertical": 2}.get(axis, axis)
    mirrored = plain_gradient(student, images.flip(number), labels).flip(number)
    expected = half(plain_gradient(student, images, labels) - mirrored, form)
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("middle", [nn.Tanh, lambda: nn.BatchNorm2d(4), lambda: nn.Dropout2d(0.5)])
def test_flip_symmetry_counts_chosen_classes_only(middle: Any) -> None:
    student, (images, labels) = network(0, nn.Tanh(), middle()), batch(6)
    term = at.FlipSymmetry(1.0, "squared", "vertical", classes=(0, 2))
    torch.manual_seed(9)
    out = at.Transfer(student, terms=[term])(images, labels)

    def gradient(pixels: Tensor) -> Tensor:
        torch.manual_seed(9)
        leaf = pixels.clone().requires_grad_()
        loss = functional.cross_entropy(student(leaf), labels, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    difference = gradient(images) - gradient(images.flip(2)).flip(2)
    kept = torch.tensor([label in (0, 2) for label in labels.tolist()])
    expected = difference[kept].square().sum() / 2 / len(images)
    torch.testing.assert_close(out.loss.detach(), expected)


def test_no_chosen_image_in_the_batch_is_zero_not_nan() -> None:
    student, (images, labels) = network(0), batch()
    term = at.FlipSymmetry(1.0, classes=(2,))
    out = at.Transfer(student, terms=[term])(images, torch.zeros_like(labels))
    out.loss.backward()
    assert out.loss == 0
    assert student[0].weight.grad.abs().sum() == 0


def test_a_symmetric_network_is_flip_symmetric_even_with_batch_norm() -> None:
    student, (images, labels) = network(0, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)), batch()
    student[-1] = nn.Linear(4, 3).double()
    with torch.no_grad():
        student[0].weight.copy_((student[0].weight + student[0].weight.flip(3)) / 2)
    out = at.Transfer(student, terms=[at.FlipSymmetry(1.0)])(images, labels)
    out.loss.backward()
    assert out.loss < 1e-12
    assert all(weight.grad.isfinite().all() for weight in student.parameters())


def test_running_statistics_move_once_by_the_straight_pass() -> None:
    images, labels = batch()
    plain, flipped = (network(0, nn.BatchNorm2d(4, momentum=None), nn.Tanh()) for _ in range(2))
    plain(images)
    at.Transfer(flipped, terms=[at.FlipSymmetry(1.0, axis="vertical")])(images, labels)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(flipped.state_dict()[name], expected)


@pytest.mark.parametrize("form", ["paper", "squared"])
def test_input_gradient_norm_is_drucker_and_lecuns(form: Any) -> None:
    student, (images, labels) = network(0), batch()
    out = at.Transfer(student, terms=[at.InputGradientNorm(1.0, form)])(images, labels)
    torch.testing.assert_close(out.loss, half(plain_gradient(student, images, labels), form))


@pytest.mark.parametrize("form", ["paper", "squared"])
@pytest.mark.parametrize("middle", [nn.Tanh, nn.ReLU, lambda: nn.BatchNorm2d(4)])
def test_a_student_like_its_teacher_has_no_gradient_to_follow(form: Any, middle: Any) -> None:
    student, teacher, (images, labels) = network(0, middle()), network(0, middle()), batch()
    transfer = at.Transfer(student.eval(), teacher, [at.GradientAttention(1.0, form)])
    out = transfer(images, labels)
    out.loss.backward()
    assert out.loss == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in student.parameters())


@pytest.mark.parametrize("kind", [None, "sum", "max"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_maps_and_unit_length_are_options(kind: Any, normalize: bool, power: float) -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    term = at.GradientAttention(1.0, "squared", normalize=normalize, map=kind, power=power)
    out = at.Transfer(student, teacher, [term])(images, labels)
    sides = []
    for model in (student, teacher):
        side = plain_gradient(model, images, labels)
        side = side if kind is None else maps.activation_map(side, kind, power)
        side = side.flatten(1)
        sides.append(side / side.norm(dim=1, keepdim=True) if normalize else side)
    torch.testing.assert_close(out.loss, half(sides[0] - sides[1], "squared"))


def test_the_gradient_is_at_the_images_given_before_normalisation() -> None:
    student, (images, labels) = network(0), batch()
    mean, std = (0.5, 0.4), (0.25, 0.2)
    terms = [at.InputGradientNorm(1.0), at.FlipSymmetry(1.0)]
    transfer = at.Transfer(student, terms=terms, student_normalization=(mean, std))

    def whole(pixels: Tensor) -> Tensor:
        scale = torch.tensor(std, dtype=pixels.dtype).view(-1, 1, 1)
        return student((pixels - torch.tensor(mean, dtype=pixels.dtype).view(-1, 1, 1)) / scale)

    straight, flipped = (
        plain_gradient(whole, pixels, labels)  # type: ignore[arg-type]
        for pixels in (images, images.flip(3))
    )
    expected = half(straight, "paper") + half(straight - flipped.flip(3), "paper")
    torch.testing.assert_close(transfer(images, labels).loss, expected)


@pytest.mark.parametrize("form", ["paper", "squared"])
def test_the_gradient_is_at_the_normalized_images_where_asked_for(form: Any) -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    mean, std = (0.5, 0.4), (0.25, 0.2)
    terms = [
        at.GradientAttention(1.0, form, inputs="normalized"),
        at.InputGradientNorm(2.0, form, inputs="normalized"),
        at.FlipSymmetry(4.0, form, classes=(0, 1), inputs="normalized"),
    ]
    transfer = at.Transfer(
        student,
        teacher,
        terms,
        student_normalization=(mean, std),
        teacher_normalization=(mean, std),
    )
    normalized = transfer.student_normalization(images)
    straight, of_teacher = (plain_gradient(one, normalized, labels) for one in (student, teacher))
    flipped = plain_gradient(student, normalized.flip(3), labels).flip(3)
    chosen = (labels < 2).view(-1, 1, 1, 1)
    expected = (
        half(straight - of_teacher, form),
        2 * half(straight, form),
        4 * half((straight - flipped) * chosen, form),
    )
    out = transfer(images, labels)
    for value, other in zip(out.terms.values(), expected, strict=True):
        torch.testing.assert_close(value, other)


def test_images_that_come_normalized_are_the_normalized_images() -> None:
    student, (images, labels) = network(0), batch()
    losses = [
        at.Transfer(student, terms=[at.InputGradientNorm(1.0, inputs=inputs)])(images, labels).loss
        for inputs in ("images", "normalized")
    ]
    assert torch.equal(*losses)


def test_it_combines_with_every_other_term() -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    terms = [
        *at.distillation_terms(0.9),
        at.ActivationAttention(10.0, pairs="1:1"),
        at.FullActivation(pairs="1:1"),
        at.GradientAttention(1.0),
        at.GradientAttention(1.0, "squared", name="squared"),
        at.FlipSymmetry(1.0),
        at.InputGradientNorm(1.0),
    ]
    copies = copy.deepcopy(terms)
    transfer = at.Transfer(student, teacher, terms, example_input=images[:1]).double()
    out = transfer(images, labels)
    assert {"gradient_attention", "squared"} < set(out.terms)
    torch.testing.assert_close(out.loss, sum(out.terms.values()))
    out.loss.backward()
    together = student[0].weight.grad.clone()
    separate = torch.zeros_like(together)
    for term in copies:
        student.zero_grad()
        alone = at.Transfer(student, teacher, [term], example_input=images[:1]).double()
        alone(images, labels).loss.backward()
        separate += student[0].weight.grad
    torch.testing.assert_close(together, separate)


def test_maps_of_both_gradients_are_handed_out() -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    out = at.Transfer(student, teacher, [at.GradientAttention(1.0)])(images, labels)
    pair = out.maps["gradient_attention"]["input:input"]
    for seen, model in zip(pair, (student, teacher), strict=True):
        expected = maps.normalize(maps.activation_map(plain_gradient(model, images, labels)))
        torch.testing.assert_close(maps.normalize(seen), expected)


def test_without_gradients_the_loss_is_the_same_number() -> None:
    student, teacher, (images, labels) = network(0), network(1), batch()
    transfer = at.Transfer(student, teacher, [at.GradientAttention(1.0), at.FlipSymmetry(1.0)])
    expected = transfer(images, labels).loss
    with torch.no_grad():
        out = transfer(images, labels)
    torch.testing.assert_close(out.loss, expected.detach())
    assert not out.loss.requires_grad
    assert not out.logits.requires_grad


def test_images_of_a_larger_graph_stay_part_of_it() -> None:
    student, (images, labels) = network(0), batch()
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    at.Transfer(student, terms=[at.CrossEntropy(), at.InputGradientNorm(1.0)])(
        images + shift, labels
    ).loss.backward()
    assert shift.grad is not None


def test_soft_labels() -> None:
    student, (images, labels) = network(0), batch()
    transfer = at.Transfer(student, terms=[at.InputGradientNorm(1.0), at.FlipSymmetry(1.0)])
    soft = functional.one_hot(labels, 3).double()
    torch.testing.assert_close(transfer(images, soft).loss, transfer(images, labels).loss)


def test_the_gradient_is_float32_under_autocast_and_images_keep_their_type() -> None:
    student, teacher, (images, labels) = network(0).float(), network(1).float(), batch()
    transfer = at.Transfer(student, teacher, [at.GradientAttention(1.0), at.FlipSymmetry(1.0)])
    exact = transfer(images.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        out = transfer(images.float(), labels)
    assert out.loss.dtype == torch.float32
    assert out.maps["gradient_attention"]["input:input"].student.dtype == torch.float32
    for name, value in exact.raw_terms.items():
        torch.testing.assert_close(out.raw_terms[name], value, rtol=0.03, atol=0)


def test_both_passes_are_under_autocast() -> None:
    student, (images, labels) = network(0).float(), batch()
    transfer = at.Transfer(student, terms=[at.FlipSymmetry(1.0)], example_input=images.float())
    types = []
    student[0].register_forward_hook(lambda _, __, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        transfer(images.float(), labels)
    assert types == [torch.bfloat16] * 2


def test_autocast_leaves_float64_as_it_is() -> None:
    student, (images, labels) = network(0), batch()
    transfer = at.Transfer(student, terms=[at.InputGradientNorm(1.0)])
    exact = transfer(images, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transfer(images, labels).loss, exact)


def test_half_norm_of_zero_has_a_zero_gradient() -> None:
    difference = torch.zeros(2, 3, requires_grad=True)
    losses.half_l2_norm(difference).sum().backward()
    assert np.array_equal(difference.grad, np.zeros((2, 3)))


def test_a_compiled_student_runs_eagerly_and_it_is_said_once() -> None:
    student, (images, labels) = network(0), batch()
    expected = at.Transfer(student, terms=[at.InputGradientNorm(1.0)])(images, labels).loss
    transfer = at.Transfer(torch.compile(student), terms=[at.InputGradientNorm(1.0)])
    with pytest.warns(UserWarning, match="compiled graph has no second derivative"):
        out = transfer(images, labels)
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    transfer(images, labels)  # no second warning: warnings are errors in these tests


def test_a_compiled_objective_runs_eagerly_too() -> None:
    (images, labels), terms = batch(), [at.CrossEntropy(), at.FlipSymmetry(1.0)]
    expected = at.Transfer(network(0), terms=terms)(images, labels).loss
    compiled = torch.compile(at.Transfer(network(0), terms=terms))
    with pytest.warns(UserWarning, match="compiled graph has no second derivative"):
        out = compiled(images, labels)
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
