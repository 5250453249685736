"""Terms over logits: the labels', and the teacher's soft targets."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.errors import InputError
from attention_transfer.functional import losses, maps
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.terms.base import Term, check_choice
from attention_transfer.transfer.terms.inputs import TermInputs

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "KnowledgeDistillation",
    "SoftTargets",
    "check_classes",
    "check_temperature",
    "distillation_terms",
]


class CrossEntropy(Term):
    """weight * cross-entropy of the student's logits with the labels, a mean over the batch.

    Logits are (N, K) for K classes, or (N, K, ...) with logits for every position, as in semantic
    segmentation. Labels are class indices, (N,) or (N, ...), or probabilities in the logits' shape.

    Args:
        weight: finite, at least 0.
        ignore_index: labels with this value do not count (torch's default).
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.
        label_smoothing: in [0, 1), the share of each label that is spread evenly over all classes.

    Example:
        >>> CrossEntropy(weight=0.1).weight_at(0.5)
        0.1
    """

    name = "cross_entropy"
    needs_logits = True

    def __init__(
        self,
        weight: float = 1.0,
        ignore_index: int = -100,
        schedule: Schedule = "constant",
        name: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, schedule, name)
        _check_index(ignore_index)
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"label_smoothing must be at least 0 and below 1, got {label_smoothing}; 0.1 is "
                "usual"
            )
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, inputs: TermInputs) -> Tensor:
        try:
            return losses.cross_entropy(
                inputs.logits, inputs.labels, self.ignore_index, self.label_smoothing
            )
        except ValueError as error:
            raise InputError(f"{error}") from None


class BinaryCrossEntropy(Term):
    """weight * binary cross-entropy of the student's logits with multi-label targets, the mean
    over images and classes.

    Labels have the logits' shape, in [0, 1]: 1 where an image is of the class. Activation attention
    goes with it and a teacher of any classes; knowledge distillation and the gradient terms are for
    images of one class each.

    Args:
        weight: finite, at least 0.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> BinaryCrossEntropy(weight=0.5).name
        'binary_cross_entropy'
    """

    name = "binary_cross_entropy"
    needs_logits = True

    def forward(self, inputs: TermInputs) -> Tensor:
        logits, labels = inputs.logits, _labels(self, inputs)
        if labels.shape != logits.shape:
            raise InputError(
                f"BinaryCrossEntropy takes labels like the logits, {tuple(logits.shape)}, got "
                f"{_shape(labels)}; for class indices (N,), use CrossEntropy"
            )
        # Elsewhere than on a CPU, looking at them would make the CPU wait for the device.
        if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels <= 1)).all()):
            raise InputError(
                "BinaryCrossEntropy takes labels from 0 to 1, got values from "
                f"{float(labels.min()):g} to {float(labels.max()):g}; give 1 where an image is of "
                "the class and 0 where not"
            )
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class SoftTargets(Term):
    """A term that compares both networks' softmax, which is of images of one class each."""

    needs_logits = True
    needs_teacher_logits = True


class KnowledgeDistillation(SoftTargets):
    """weight * T^2 * KL(teacher || student) of the softened class probabilities.

    A mean over the batch and, for logits (N, K, ...), over positions.

    Args:
        weight: finite, at least 0.
        temperature: T > 0.
        class_mean: divide by the number of classes, as the authors' code did until 2018.
        ignore_index: positions whose label has this value do not count; None: all count.
        resize: bring the teacher's logits by position to the student's size (bilinear).
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> KnowledgeDistillation(weight=0.9, temperature=4.0).name
        'knowledge_distillation'
    """

    name = "knowledge_distillation"

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 4.0,
        class_mean: bool = False,
        ignore_index: int | None = None,
        resize: bool = False,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, schedule, name)
        check_temperature(temperature, usual=4)
        if ignore_index is not None:
            _check_index(ignore_index)
        self.temperature, self.class_mean = temperature, class_mean
        self.ignore_index, self.resize = ignore_index, resize

    def check(self, inputs: TermInputs) -> None:
        check_classes("knowledge distillation", inputs, resized=self.resize)

    def forward(self, inputs: TermInputs) -> Tensor:
        student, teacher = inputs.logits, inputs.teacher_logits
        if self.resize and teacher.shape != student.shape:
            teacher = _resized(teacher, student.shape[2:])
        divergence = losses.knowledge_distillation(
            student, teacher, self.temperature, self._mask(inputs)
        )
        return divergence / student.shape[1] if self.class_mean else divergence

    def _mask(self, inputs: TermInputs) -> Tensor | None:
        """Return where labels count, (N, ...); None: everywhere."""
        if self.ignore_index is None:
            return None
        labels, logits = _labels(self, inputs), inputs.logits
        shape = (logits.shape[0], *logits.shape[2:])
        integers = not (labels.is_floating_point() or labels.is_complex())
        if tuple(labels.shape) != shape or not integers:
            raise InputError(
                f"ignore_index needs labels {shape}, one class index for each position, got "
                f"{labels.dtype} of shape {_shape(labels)}; give such labels, or ignore_index=None"
            )
        return labels.long() != self.ignore_index


def distillation_terms(
    alpha: float,
    temperature: float = 4.0,
    preset: Literal["alpha", "2017"] = "alpha",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[CrossEntropy, KnowledgeDistillation]:
    """Return the paper's mixture of labels and soft targets, as its two terms.

    - ``"alpha"``: (1 - alpha) * CE + alpha * T^2 * KL, the authors' code since July 2018.
    - ``"2017"``: (1 - alpha) * CE + 2 * alpha * T^2 * KL / classes, their code before.

    Args:
        alpha: the weight of distillation, in [0, 1]; the paper's code used 0.9.
        temperature: T > 0; the paper's code used 4.
        preset: which of the two.
        ignore_index: positions whose label has this value do not count; None: all count.
        label_smoothing: of the labels' term; the teacher's soft targets stay as they are.

    Raises:
        InputError: alpha outside [0, 1], T not above 0, or an unknown preset.

    Example:
        >>> labels, soft = distillation_terms(alpha=0.75)
        >>> labels.weight, soft.weight
        (0.25, 0.75)
    """
    check_choice("preset", preset, ("alpha", "2017"))
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}; the paper's code used 0.9")
    old = preset == "2017"
    soft = KnowledgeDistillation(
        2 * alpha if old else alpha, temperature, class_mean=old, ignore_index=ignore_index
    )
    labels = CrossEntropy(
        1 - alpha,
        -100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
    )
    return labels, soft


def check_temperature(temperature: float, usual: float) -> None:
    """Raise an InputError unless the temperature is finite and above 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(
            f"temperature must be a finite number above 0, got {temperature}; the paper used "
            f"{usual:g}"
        )


def check_classes(term: str, inputs: TermInputs, resized: bool = False) -> None:
    """Raise an InputError unless both networks' logits have the same classes and positions."""
    student, teacher = tuple(inputs.logits.shape), tuple(inputs.teacher_logits.shape)
    if student[:2] != teacher[:2] or len(student) != len(teacher):
        raise InputError(
            f"{term} compares logits of the same classes, got student {student} and teacher "
            f"{teacher}; use a teacher of the same classes, or drop this term (activation "
            "attention needs no classes in common)"
        )
    if student != teacher and not resized:
        raise InputError(
            f"{term} compares logits position by position, got student {student} and teacher "
            f"{teacher}; KnowledgeDistillation(resize=True) brings the teacher's to the student's "
            "size"
        )


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    """Return logits by position at another size, by linear interpolation."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return functional.interpolate(maps.to_float32(logits), size, mode=mode, align_corners=False)


def _labels(term: Term, inputs: TermInputs) -> Tensor:
    labels = inputs.labels
    if not isinstance(labels, Tensor):
        raise InputError(
            f"{type(term).__name__} needs labels, got "
            f"{'None' if labels is None else f'a {type(labels).__name__}'}; call "
            "transfer(images, labels)"
        )
    return labels


def _check_index(ignore_index: object) -> None:
    """Raise an InputError unless the label that does not count is an integer."""
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise InputError(f"ignore_index must be an integer, such as 255, got {ignore_index!r}")


def _shape(labels: Any) -> str:
    """Describe labels for an error message."""
    return str(tuple(labels.shape)) if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
