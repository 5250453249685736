"""Terms over gradients at the input: double backpropagation (paper, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import losses, maps
from attention_transfer.transfer.terms.base import (
    Observation,
    PairedMaps,
    Term,
    check_choice,
    check_power,
    check_weight,
)
from attention_transfer.transfer.terms.logits import check_classes, check_labels

__all__ = ["FlipAxis", "FlipSymmetry", "GradientAttention", "InputGradientNorm"]

FlipAxis = Literal["horizontal", "vertical"]
_AXES: dict[str | int, int] = {"horizontal": 3, "vertical": 2, 3: 3, 2: 2, -1: 3, -2: 2}


class _GradientTerm(Term):
    """What the terms over input gradients have in common."""

    beta: float
    form: losses.GradientForm
    needs_input_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weight("beta", self.beta)
        check_choice("form", self.form, get_args(losses.GradientForm))

    def weight_at(self, progress: float) -> float:
        return self.beta

    def check(self, observation: Observation) -> None:
        check_labels("gradient attention", observation, "leave the gradient terms out")


@dataclass(frozen=True)
class GradientAttention(_GradientTerm):
    r"""beta/2 * ||J_S - J_T||_2, batch mean: the student's loss shall be sensitive to the image
    where the teacher's is (paper, Eq. 4).

    J is the gradient of the cross-entropy at the images, of shape (C, H, W); J_T is a constant.
    ``form="squared"`` takes beta/2 * ||.||^2, whose gradient in the weights W is the paper's
    beta (J_S - J_T) d^2L / dW dx.

    Args:
        beta: at least 0.
        form: ``"paper"`` or ``"squared"``.
        normalize: compare J / ||J||_2, for networks whose gradients differ in scale.
        map: compare F(J), ``"sum"`` or ``"max"`` of |J|^power over colours, (H, W), instead of J.
        power: p > 0 of the map.

    Example:
        >>> GradientAttention(beta=10.0, form="squared").weight_at(0.5)
        10.0
    """

    beta: float
    form: losses.GradientForm = "paper"
    normalize: bool = False
    map: maps.MapKind | None = None
    power: float = 2.0
    name: ClassVar[str] = "gradient_attention"
    needs_teacher_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.map is not None:
            check_choice("map", self.map, get_args(maps.MapKind))
        check_power(self.power)

    def check(self, observation: Observation) -> None:
        super().check(observation)
        check_classes("gradient attention", observation)

    def value(self, observation: Observation) -> Tensor:
        student, teacher = observation.gradients.input_gradient, observation.teacher_gradient
        if teacher is None or teacher.shape != student.shape:
            got = "none" if teacher is None else f"{tuple(teacher.shape)}"
            raise InputError(
                f"gradient attention compares gradients at the images, {tuple(student.shape)}, and "
                f"the teacher's targets have {got}; use those of transfer.targets(images, labels)"
            )
        with torch.no_grad():
            observation.maps["input:input"] = PairedMaps(
                *(maps.activation_map(gradient) for gradient in (student, teacher))
            )
        difference = self._attention(student) - self._attention(teacher)
        return losses.half_l2_norm(difference, self.form).mean()

    def _attention(self, gradient: Tensor) -> Tensor:
        """What is compared: J, or its map, normalised or not; (N, ...)."""
        gradient = maps.to_float32(gradient)
        if self.map is not None:
            gradient = maps.activation_map(gradient, self.map, self.power).unsqueeze(1)
        return maps.normalize(gradient.flatten(2)) if self.normalize else gradient


@dataclass(frozen=True)
class FlipSymmetry(_GradientTerm):
    """beta/2 * ||J(x) - flip(J(flip(x)))||_2, batch mean: what matters in an image matters in its
    mirror image too (paper, Eq. 6). It needs no teacher.

    Args:
        beta: at least 0.
        form: ``"paper"``, or ``"squared"`` for beta/2 * ||.||^2.
        axis: ``"horizontal"`` (left and right change places; 3 or -1, as an axis of the images)
            or ``"vertical"`` (top and bottom; 2 or -2).
        classes: indices of the classes that the flip keeps what they are; images of others count
            as zero in the batch mean, and are left out of the flipped pass unless the network has
            batch norm or draws random numbers. None: all of them. (A network that takes statistics
            over the batch by operations of its own wants None.)

    Example:
        >>> digits = FlipSymmetry(beta=1.0, axis="vertical", classes=(0, 1, 3, 8))
        >>> digits.needs_teacher
        False
    """

    beta: float
    form: losses.GradientForm = "paper"
    axis: FlipAxis | int = "horizontal"
    classes: Sequence[int] | None = None
    name: ClassVar[str] = "flip_symmetry"
    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in _AXES:
            raise InputError(
                f'axis must be "horizontal" or "vertical" (or 3, 2, -1, -2), got {self.axis!r}'
            )
        if self.classes is None:
            return
        if not isinstance(self.classes, Sequence):
            raise InputError(f"classes are indices, such as (0, 1, 3, 8), got {self.classes!r}")
        if not self.classes:
            raise InputError("classes is empty, so no image would count; give some, or None")

    def check(self, observation: Observation) -> None:
        super().check(observation)
        if self.classes is None:
            return
        labels, classes = observation.labels, observation.logits.shape[-1]
        if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
            raise InputError(
                "FlipSymmetry(classes=...) chooses images by class index, got labels of shape "
                f"{tuple(labels.shape)}; give labels (N,), or leave classes out"
            )
        if not all(0 <= chosen < classes for chosen in self.classes):
            raise InputError(
                f"classes must be among the network's 0 to {classes - 1}, got {self.classes}"
            )

    def value(self, observation: Observation) -> Tensor:
        labels, straight = observation.labels, observation.gradients.input_gradient
        chosen = None
        if self.classes is not None:
            assert labels is not None
            chosen = torch.isin(labels, torch.tensor(self.classes, device=labels.device))
        flipped = observation.gradients.flipped(_AXES[self.axis], chosen)
        difference = (straight if chosen is None else straight[chosen]) - flipped
        return losses.half_l2_norm(difference, self.form).sum() / len(straight)


@dataclass(frozen=True)
class InputGradientNorm(_GradientTerm):
    """beta/2 * ||J||_2, batch mean: a loss that small changes of the image change little
    (Drucker & LeCun 1992, double backpropagation; the paper's baseline). It needs no teacher.

    Args:
        beta: at least 0.
        form: ``"paper"``, or ``"squared"`` for beta/2 * ||.||^2, as Drucker and LeCun have it.

    Example:
        >>> InputGradientNorm(beta=0.5, form="squared").name
        'input_gradient_norm'
    """

    beta: float
    form: losses.GradientForm = "paper"
    name: ClassVar[str] = "input_gradient_norm"
    needs_teacher: ClassVar[bool] = False

    def value(self, observation: Observation) -> Tensor:
        return losses.half_l2_norm(observation.gradients.input_gradient, self.form).mean()
