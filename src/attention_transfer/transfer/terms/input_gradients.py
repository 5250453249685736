"""Terms over gradients at the input: double backpropagation (paper, section 3.2)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import losses, maps
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.terms.base import (
    Term,
    Weight,
    check_choice,
    check_power,
    check_weight,
)
from attention_transfer.transfer.terms.beta import WeightNamedBeta
from attention_transfer.transfer.terms.inputs import PairedMaps, TermInputs
from attention_transfer.transfer.terms.logits import check_classes

__all__ = ["FlipAxis", "FlipSymmetry", "GradientAttention", "GradientInputs", "InputGradientNorm"]

GradientInputs = Literal["images", "normalized"]
FlipAxis = Literal["horizontal", "vertical"]
_AXES: dict[str | int, int] = {"horizontal": 3, "vertical": 2, 3: 3, 2: 2, -1: 3, -2: 2}


class _GradientTerm(WeightNamedBeta, Term):
    """The base class of terms over input gradients."""

    needs_logits = True
    needs_input_gradient = True

    def __init__(
        self,
        beta: Weight,
        form: losses.GradientForm,
        inputs: GradientInputs,
        schedule: Schedule,
        name: str | None,
    ) -> None:
        check_weight("beta", beta, auto=True)
        super().__init__(beta, schedule, name)
        check_choice("form", form, get_args(losses.GradientForm))
        check_choice("inputs", inputs, get_args(GradientInputs))
        self.form, self.inputs = form, inputs

    def check(self, inputs: TermInputs) -> None:
        if inputs.logits.dim() != 2:
            raise InputError(
                f"gradient attention needs logits (N, classes), got {tuple(inputs.logits.shape)}; "
                "leave the gradient terms out, or return one row of logits for each image"
            )

    def _half_norm(self, gradients: Tensor, inputs: TermInputs) -> Tensor:
        """Return half the norm, or its square, of input gradients (N, C, H, W), for each image."""
        return losses.half_l2_norm(self._at_inputs(gradients, inputs), self.form)

    def _at_inputs(self, gradients: Tensor, inputs: TermInputs) -> Tensor:
        """Return gradients at the images as gradients at what the term's ``inputs`` names."""
        if self.inputs == "images":
            return gradients
        deviations = inputs.input_gradients.deviations
        return gradients if deviations is None else gradients * deviations


class GradientAttention(_GradientTerm):
    r"""beta/2 * ||J_S - J_T||_2, batch mean: transfer where the loss is sensitive to the image
    (paper, Eq. 4).

    J is the gradient of the cross-entropy at the images, of shape (C, H, W); J_T is a constant.
    In every gradient term an image whose label is -100, or the ``ignore_index`` of another term,
    has J = 0, and counts in the batch mean.
    ``form="squared"`` takes beta/2 * ||.||^2, whose gradient in the weights W is the paper's
    beta (J_S - J_T) d^2L / dW dx.

    Args:
        beta: the weight, at least 0. Or ``"auto"``: for J terms over input gradients that are
            weighed so, N / (sqrt(J) * A), where N is the norm of the gradient in the student's
            weights of everything but terms over input gradients, and A that of the term's own loss
            without a weight, both as running means over the steps before.
        form: ``"paper"`` or ``"squared"``.
        inputs: J is the gradient at the ``"images"``, or at the images ``"normalized"`` by the
            student's ``student_normalization``: J times the standard deviation of each channel.
            Without such a normalization both are the same.
        normalize: compare J / ||J||_2, for networks whose gradients differ in scale.
        map: compare F(J), ``"sum"`` or ``"max"`` of |J|^power over colours, (H, W), instead of J.
        power: p > 0 of the map.
        schedule: of beta, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> GradientAttention(beta=10.0, form="squared").weight_at(0.5)
        10.0
    """

    name = "gradient_attention"
    needs_teacher_logits = True
    needs_teacher_gradient = True

    def __init__(
        self,
        beta: Weight,
        form: losses.GradientForm = "paper",
        normalize: bool = False,
        map: maps.MapKind | None = None,
        power: float = 2.0,
        schedule: Schedule = "constant",
        name: str | None = None,
        inputs: GradientInputs = "images",
    ) -> None:
        super().__init__(beta, form, inputs, schedule, name)
        if map is not None:
            check_choice("map", map, get_args(maps.MapKind))
        check_power(power)
        self.normalize, self.map, self.power = normalize, map, power

    def check(self, inputs: TermInputs) -> None:
        super().check(inputs)
        check_classes("gradient attention", inputs)

    def forward(self, inputs: TermInputs) -> Tensor:
        student, teacher = inputs.input_gradients.input_gradient, inputs.teacher_gradient
        if teacher.shape != student.shape:
            raise InputError(
                f"gradient attention compares gradients at the images, {tuple(student.shape)}, and "
                f"the teacher's targets have {tuple(teacher.shape)}; use those of "
                "transfer.targets(images, labels)"
            )
        with torch.no_grad():
            inputs.maps["input:input"] = PairedMaps(
                *(maps.activation_map(gradient) for gradient in (student, teacher))
            )
        student, teacher = (
            self._attention(self._at_inputs(gradient, inputs)) for gradient in (student, teacher)
        )
        return losses.half_l2_norm(student - teacher, self.form).mean()

    def _attention(self, gradient: Tensor) -> Tensor:
        """Return what is compared: J, or its map, normalized or not; (N, ...)."""
        gradient = maps.to_float32(gradient)
        if self.map is not None:
            gradient = maps.activation_map(gradient, self.map, self.power).unsqueeze(1)
        return maps.normalize(gradient.flatten(2)) if self.normalize else gradient


class FlipSymmetry(_GradientTerm):
    """beta/2 * ||J(x) - flip(J(flip(x)))||_2, batch mean: what matters in an image matters in its
    mirror image too (paper, Eq. 6). It needs no teacher.

    Args:
        beta: the weight, at least 0; or ``"auto"``, as of :class:`GradientAttention`.
        form: ``"paper"``, or ``"squared"`` for beta/2 * ||.||^2.
        inputs: as of :class:`GradientAttention`.
        axis: ``"horizontal"`` (left and right change places; 3 or -1, as an axis of the images)
            or ``"vertical"`` (top and bottom; 2 or -2).
        classes: indices of the classes whose images keep their class when flipped; images of others
            count as zero in the batch mean, and are left out of the flipped pass unless the network
            has batch norm or draws random numbers. None: all of them. (A network that takes
            statistics over the batch by operations of its own wants None.)
        schedule: of beta, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> digits = FlipSymmetry(beta=1.0, axis="vertical", classes=(0, 1, 3, 8))
        >>> digits.needs_teacher
        False
    """

    name = "flip_symmetry"

    def __init__(
        self,
        beta: Weight,
        form: losses.GradientForm = "paper",
        axis: FlipAxis | int = "horizontal",
        classes: Sequence[int] | None = None,
        schedule: Schedule = "constant",
        name: str | None = None,
        inputs: GradientInputs = "images",
    ) -> None:
        super().__init__(beta, form, inputs, schedule, name)
        if axis not in _AXES:
            raise InputError(
                f'axis must be "horizontal" or "vertical" (or 3, 2, -1, -2), got {axis!r}'
            )
        if classes is not None and not isinstance(classes, Sequence):
            raise InputError(f"classes are indices, such as (0, 1, 3, 8), got {classes!r}")
        if classes is not None and not classes:
            raise InputError("classes is empty, so no image would count; give some, or None")
        self.axis, self.classes = axis, classes

    def check(self, inputs: TermInputs) -> None:
        super().check(inputs)
        if self.classes is None:
            return
        classes = inputs.logits.shape[-1]
        if not all(0 <= chosen < classes for chosen in self.classes):
            raise InputError(
                f"classes must be among the network's 0 to {classes - 1}, got {self.classes}"
            )

    def forward(self, inputs: TermInputs) -> Tensor:
        labels, gradient = inputs.labels, inputs.input_gradients.input_gradient
        chosen = None
        if self.classes is not None:
            if labels.dim() != 1 or labels.is_floating_point():
                raise InputError(
                    "FlipSymmetry(classes=...) chooses images by class index, got labels of shape "
                    f"{tuple(labels.shape)}; give labels (N,), or leave classes out"
                )
            chosen = torch.isin(labels, torch.tensor(self.classes, device=labels.device))
        flipped = inputs.input_gradients.flipped(_AXES[self.axis], chosen)
        difference = (gradient if chosen is None else gradient[chosen]) - flipped
        return self._half_norm(difference, inputs).sum() / len(gradient)


class InputGradientNorm(_GradientTerm):
    """beta/2 * ||J||_2, batch mean: a loss that small changes of the image change little
    (Drucker & LeCun 1992, double backpropagation; the paper's baseline). It needs no teacher.

    Args:
        beta: the weight, at least 0; or ``"auto"``, as of :class:`GradientAttention`.
        form: ``"paper"``, or ``"squared"`` for beta/2 * ||.||^2, as Drucker and LeCun have it.
        inputs: as of :class:`GradientAttention`.
        schedule: of beta, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> InputGradientNorm(beta=0.5, form="squared").name
        'input_gradient_norm'
    """

    name = "input_gradient_norm"

    def __init__(
        self,
        beta: Weight,
        form: losses.GradientForm = "paper",
        schedule: Schedule = "constant",
        name: str | None = None,
        inputs: GradientInputs = "images",
    ) -> None:
        super().__init__(beta, form, inputs, schedule, name)

    def forward(self, inputs: TermInputs) -> Tensor:
        return self._half_norm(inputs.input_gradients.input_gradient, inputs).mean()
