"""Terms: each turns what was seen of student and teacher into one named scalar.

A term holds its settings and calls a pure function; the objective
(:class:`attention_transfer.Transfer`) calls every term alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn import functional

from attention_transfer import losses, maps
from attention_transfer.errors import InputError, nearest
from attention_transfer.transfer.gradients import InputGradients
from attention_transfer.transfer.pairing import Pair, Pairs

__all__ = [
    "ActivationAttention",
    "BetaSchedule",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FullActivation",
    "KnowledgeDistillation",
    "Observation",
    "PairFeatures",
    "PairedMaps",
    "Term",
    "check_choice",
    "check_classes",
    "check_power",
    "check_weight",
    "distillation_terms",
]

BetaSchedule = Literal["constant", "linear", "cosine"]


class PairFeatures(NamedTuple):
    """The features (N, C, H, W) at both ends of a pair; the teacher's need no gradient."""

    pair: Pair
    student: Tensor
    teachers: tuple[Tensor, ...]
    """One for each of the pair's teacher points."""

    @property
    def teacher(self) -> Tensor:
        """The only teacher point's.

        Raises:
            InputError: there are several.
        """
        if len(self.teachers) != 1:
            raise InputError(
                f"pair {self.pair} has {len(self.teachers)} teacher points, and only attention "
                "maps can be averaged; give this term pairs with one teacher point each"
            )
        return self.teachers[0]

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width at which attention maps of the pair are compared."""
        shapes = [features.shape[-2:] for features in (self.student, *self.teachers)]
        return maps.common_size(*shapes)


class PairedMaps(NamedTuple):
    """Attention maps (N, H, W) at both ends of a pair, detached, each at its own size and scale."""

    student: Tensor
    teacher: Tensor


@dataclass
class Observation:
    """What a term may look at: one batch, seen by both networks."""

    logits: Tensor
    labels: Tensor | None
    teacher_logits: Tensor | None = None
    pairs: list[PairFeatures] = field(default_factory=list)
    modules: nn.ModuleList = field(default_factory=nn.ModuleList)
    input_gradients: InputGradients | None = None
    teacher_gradient: Tensor | None = None
    """J_T (N, C, H, W), a constant, where a term needs it."""
    maps: dict[str, PairedMaps] = field(default_factory=dict)
    """Filled by terms that read attention: the pair's name -> its maps."""

    @property
    def gradients(self) -> InputGradients:
        """The student's gradients at the images, for a term that says it needs them."""
        assert self.input_gradients is not None
        return self.input_gradients


class Term(ABC):
    """One summand of the objective."""

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_input_gradient: ClassVar[bool] = False
    needs_teacher_gradient: ClassVar[bool] = False

    @abstractmethod
    def value(self, observation: Observation) -> Tensor:
        """The raw scalar, a mean over the batch, without the term's weight."""

    @abstractmethod
    def weight_at(self, progress: float) -> float:
        """The term's weight when ``progress`` (0 to 1) of the training is done."""

    @property
    def wanted_pairs(self) -> Pairs | None:
        """The pairs of layers the term compares, or None if it compares none."""
        return None

    def check(self, observation: Observation) -> None:
        """Raises an InputError if shapes do not fit, or the term could only be zero."""
        return

    def make_modules(self, pairs: Sequence[PairFeatures]) -> nn.ModuleList:
        """Modules the term trains beside the student, made from one example's features."""
        return nn.ModuleList()

    def effective_weight(self, size: tuple[int, int]) -> tuple[float, str]:
        """The weight of one pair compared at a size, and what it is a weight on."""
        raise NotImplementedError


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
        labels = observation.labels
        if labels is None or labels.dim() == 1:
            return
        if not labels.is_floating_point() or bool((labels.sum(dim=1) - 1).abs().gt(1e-3).any()):
            raise InputError(
                f"CrossEntropy takes class indices (N,), or probabilities (N, classes) that sum "
                f"to 1, got {labels.dtype} of shape {tuple(labels.shape)}; for images of several "
                "classes each, use BinaryCrossEntropy"
            )

    def value(self, observation: Observation) -> Tensor:
        logits = maps.promoted(observation.logits)
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
        logits = maps.promoted(observation.logits)
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


@dataclass(frozen=True)
class ActivationAttention(Term):
    """beta * the sum over pairs of the attention transfer loss (paper, Eq. 2).

    See :func:`attention_transfer.maps.activation_map` for ``map`` and ``power``, and
    :func:`attention_transfer.losses.attention_transfer` for ``form`` and ``norm``. At a pair with
    several teacher points, the teacher's map is the :func:`attention_transfer.maps.mean_map` of
    theirs. Over the training, beta stays (``"constant"``) or falls to zero (``"linear"``,
    ``"cosine"``).

    Example:
        >>> ActivationAttention(beta=1000.0, schedule="linear").weight_at(0.25)
        750.0
    """

    beta: float = 1000.0
    map: maps.MapKind = "sum"
    power: float = 2.0
    form: losses.TransferForm = "code"
    pairs: Pairs = "auto"
    norm: float = 2.0
    schedule: BetaSchedule = "constant"
    name: ClassVar[str] = "activation_attention"

    def __post_init__(self) -> None:
        check_weight("beta", self.beta)
        check_choice("map", self.map, get_args(maps.MapKind))
        check_choice("form", self.form, get_args(losses.TransferForm))
        check_choice("schedule", self.schedule, get_args(BetaSchedule))
        check_power(self.power)
        if not self.norm >= 1:
            raise InputError(f"norm must be at least 1, got {self.norm}; the paper used 2")

    @property
    def wanted_pairs(self) -> Pairs:
        return self.pairs

    def check(self, observation: Observation) -> None:
        for seen in observation.pairs:
            if seen.map_size == (1, 1):
                theirs = " and ".join(str(tuple(features.shape)) for features in seen.teachers)
                raise InputError(
                    f"pair {seen.pair} would be compared on a 1x1 map, where attention is the "
                    f"same for any image (got student {tuple(seen.student.shape)} and teacher "
                    f"{theirs}); choose earlier points"
                )

    def value(self, observation: Observation) -> Tensor:
        total = maps.promoted(observation.logits).new_zeros(())
        for pair, student_features, teachers_features in observation.pairs:
            student = maps.scale_free_map(student_features, self.map, self.power)
            teacher = maps.mean_map(
                [
                    maps.scale_free_map(features, self.map, self.power)
                    for features in teachers_features
                ]
            )
            observation.maps[str(pair)] = PairedMaps(student.detach(), teacher)
            total = total + losses.attention_transfer(student, teacher, self.form, self.norm)
        return total

    def weight_at(self, progress: float) -> float:
        if self.schedule == "linear":
            return self.beta * (1 - progress)
        if self.schedule == "cosine":
            return self.beta * (1 + math.cos(math.pi * progress)) / 2
        return self.beta

    def effective_weight(self, size: tuple[int, int]) -> tuple[float, str]:
        return losses.effective_weight(self.beta, self.form, size)


@dataclass(frozen=True)
class FullActivation(Term):
    """beta * the sum over pairs of the mean squared difference of whole activations (F-ActT).

    Where channels differ, a 1x1 convolution takes the student's features to the teacher's
    channels. It trains with the student and is no part of the student's weights.

    Example:
        >>> FullActivation(beta=0.5).weight_at(0.0)
        0.5
    """

    beta: float = 1.0
    pairs: Pairs = "auto"
    name: ClassVar[str] = "full_activation"

    def __post_init__(self) -> None:
        check_weight("beta", self.beta)

    @property
    def wanted_pairs(self) -> Pairs:
        return self.pairs

    def make_modules(self, pairs: Sequence[PairFeatures]) -> nn.ModuleList:
        def regressor(student: int, teacher: int) -> nn.Module:
            return nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity()

        return nn.ModuleList(
            regressor(pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs
        )

    def value(self, observation: Observation) -> Tensor:
        if len(observation.modules) != len(observation.pairs):
            raise InputError(
                "FullActivation makes its 1x1 convolutions when the Transfer is built; "
                "pass example_input=images[:1] to Transfer"
            )
        total = maps.promoted(observation.logits).new_zeros(())
        for seen, regressor in zip(observation.pairs, observation.modules, strict=True):
            student = regressor(maps.promoted(seen.student))
            total = total + losses.full_activation_transfer(student, seen.teacher)
        return total

    def weight_at(self, progress: float) -> float:
        return self.beta

    def effective_weight(self, size: tuple[int, int]) -> tuple[float, str]:
        return self.beta, "mean squared difference"


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


def _labels(term: Term, observation: Observation) -> Tensor:
    if observation.labels is None:
        raise InputError(
            f"{type(term).__name__} needs labels, got None; call transfer(images, labels)"
        )
    return observation.labels


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


def check_weight(name: str, value: float) -> None:
    """Raises an InputError unless the value is finite and at least 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise InputError(f"{name} must be a finite number of at least 0, got {value}")


def check_power(power: float) -> None:
    """Raises an InputError unless p in |A|^p is finite and above 0."""
    if not (power > 0 and math.isfinite(power)):
        raise InputError(f"power must be a finite number above 0, got {power}; the paper used 2")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raises an InputError, with the nearest name, unless the value is known."""
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {nearest(str(value), known)}")
