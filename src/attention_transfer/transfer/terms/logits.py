"""Terms over logits: the labels', and the teacher's soft targets."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from attention_transfer.errors import InputError
from attention_transfer.functional import losses, maps
from attention_transfer.transfer.terms.base import Observation, Term, check_choice, check_weight

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "KnowledgeDistillation",
    "check_classes",
    "check_labels",
    "distillation_terms",
]


@dataclass(frozen=True)
class _WeightedTerm(Term):
    """What the terms over logits have in common."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)

    def weight_at(self, progress: float) -> float:
        return self.weight


@dataclass(frozen=True)
class CrossEntropy(_WeightedTerm):
    """weight * cross-entropy of the student's logits with the labels, batch mean.

    Labels are class indices (N,), or probabilities (N, classes).

    Example:
        >>> CrossEntropy(weight=0.1).weight_at(0.5)
        0.1
    """

    name: ClassVar[str] = "cross_entropy"
    needs_teacher: ClassVar[bool] = False

    def check(self, observation: Observation) -> None:
        check_labels("CrossEntropy", observation, "use BinaryCrossEntropy")

    def value(self, observation: Observation) -> Tensor:
        logits = maps.to_float32(observation.logits)
        return functional.cross_entropy(logits, _labels(self, observation))


@dataclass(frozen=True)
class BinaryCrossEntropy(_WeightedTerm):
    """weight * binary cross-entropy of the student's logits with multi-label targets, the mean
    over images and classes.

    Labels are (N, classes), in [0, 1]: 1 where an image is of the class. Activation attention goes
    with it and a teacher of any classes; knowledge distillation and the gradient terms are for
    images of one class each.

    Example:
        >>> term = BinaryCrossEntropy()
        >>> float(term.value(Observation(torch.zeros(1, 2), torch.tensor([[1, 1]]))))
        0.6931471824645996
    """

    name: ClassVar[str] = "binary_cross_entropy"
    needs_teacher: ClassVar[bool] = False

    def check(self, observation: Observation) -> None:
        labels, shape = observation.labels, tuple(observation.logits.shape)
        if labels is not None and tuple(labels.shape) != shape:
            raise InputError(
                f"BinaryCrossEntropy takes labels like the logits, {shape}, got "
                f"{tuple(labels.shape)}; for class indices (N,), use CrossEntropy"
            )

    def value(self, observation: Observation) -> Tensor:
        logits = maps.to_float32(observation.logits)
        labels = _labels(self, observation).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, labels)


@dataclass(frozen=True)
class KnowledgeDistillation(_WeightedTerm):
    """weight * T^2 * KL(teacher || student) of the softened class probabilities, batch mean.

    ``class_mean=True`` divides by the number of classes, as the authors' code did until 2018.

    Example:
        >>> KnowledgeDistillation(weight=0.9, temperature=4.0).name
        'knowledge_distillation'
    """

    temperature: float = 4.0
    class_mean: bool = False
    name: ClassVar[str] = "knowledge_distillation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(
                f"temperature must be a finite number above 0, got {self.temperature}; "
                "the paper used 4"
            )

    def check(self, observation: Observation) -> None:
        check_classes("knowledge distillation", observation)

    def value(self, observation: Observation) -> Tensor:
        assert observation.teacher_logits is not None
        divergence = losses.knowledge_distillation(
            observation.logits, observation.teacher_logits, self.temperature
        )
        return divergence / observation.logits.shape[1] if self.class_mean else divergence


def distillation_terms(
    alpha: float, temperature: float = 4.0, preset: Literal["alpha", "2017"] = "alpha"
) -> tuple[CrossEntropy, KnowledgeDistillation]:
    """The paper's mixture of labels and soft targets, as its two terms.

    - ``"alpha"``: (1 - alpha) * CE + alpha * T^2 * KL, the authors' code since July 2018.
    - ``"2017"``: (1 - alpha) * CE + 2 * alpha * T^2 * KL / classes, their code before.

    Args:
        alpha: the weight of distillation, in [0, 1]; the paper's code used 0.9.
        temperature: T > 0; the paper's code used 4.
        preset: which of the two.

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
    soft = KnowledgeDistillation(2 * alpha if old else alpha, temperature, class_mean=old)
    return CrossEntropy(1 - alpha), soft


def check_labels(term: str, observation: Observation, instead: str) -> None:
    """Raises an InputError for labels of images that have several classes each."""
    labels = observation.labels
    if labels is None or labels.dim() == 1:
        return
    if not labels.is_floating_point() or bool((labels.sum(dim=1) - 1).abs().gt(1e-3).any()):
        raise InputError(
            f"{term} takes class indices (N,), or probabilities (N, classes) that sum to 1, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}; for images of several classes each, "
            f"{instead}"
        )


def check_classes(term: str, observation: Observation) -> None:
    """Raises an InputError unless both networks put out logits of the same classes."""
    logits, teacher_logits = observation.logits, observation.teacher_logits
    theirs = None if teacher_logits is None else tuple(teacher_logits.shape)
    if tuple(logits.shape) != theirs:
        raise InputError(
            f"{term} compares logits of the same classes, got student {tuple(logits.shape)} and "
            f"teacher {theirs or 'none, or of several teachers different ones'}; use a teacher of "
            "the same classes that puts out a tensor (N, classes), or drop "
            "this term (activation attention needs no classes in common)"
        )


def _labels(term: Term, observation: Observation) -> Tensor:
    if observation.labels is None:
        raise InputError(
            f"{type(term).__name__} needs labels, got None; call transfer(images, labels)"
        )
    return observation.labels
