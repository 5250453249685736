"""Terms: each turns what was seen of student and teacher into one named scalar.

A term holds its settings and calls a pure function; the objective
(:class:`attention_transfer.Transfer`) calls every term alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.functional import maps
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.pairing import Pair, Pairs
from attention_transfer.transfer.targets import MapFunction

__all__ = [
    "Observation",
    "PairFeatures",
    "PairedMaps",
    "Term",
    "check_choice",
    "check_power",
    "check_weight",
]


class PairFeatures(NamedTuple):
    """The features (N, C, H, W) at both ends of a pair; the teacher's need no gradient.

    For a term that says its ``teacher_map``, the teacher's end is attention maps (N, H, W): of the
    features, nothing else is kept.
    """

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
    needs_teacher_logits: ClassVar[bool] = True
    """Where it is false of every term, the teacher's pass ends at its last tapped layer."""
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

    @property
    def teacher_map(self) -> MapFunction | None:
        """What is taken of the teacher's features as soon as they are there; None: all of them."""
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


def check_weight(name: str, value: float) -> None:
    """Raises an InputError unless the value is finite and at least 0."""
    try:
        fits = value >= 0 and math.isfinite(value)
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_power(power: float) -> None:
    """Raises an InputError unless p in |A|^p is finite and above 0."""
    if not (power > 0 and math.isfinite(power)):
        raise InputError(f"power must be a finite number above 0, got {power}; the paper used 2")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raises an InputError, with the nearest name, unless the value is known."""
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {nearest(str(value), known)}")
