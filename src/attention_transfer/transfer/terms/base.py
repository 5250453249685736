"""The base classes of terms: a term turns what a batch gave into one named scalar.

A term is a module: what it trains is found like any module's parameters. It holds settings and
calls a pure function; the objective (:class:`attention_transfer.Transfer`) treats all terms alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.functional import maps
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.pairing import Pair, Pairs
from attention_transfer.transfer.schedule import (
    Schedule,
    check_schedule,
    is_weight,
    schedule_factor,
)
from attention_transfer.transfer.targets import Reduction

__all__ = [
    "PairInputs",
    "PairTerm",
    "PairedMaps",
    "Term",
    "TermInputs",
    "check_choice",
    "check_power",
    "check_weight",
]


class PairedMaps(NamedTuple):
    """Attention maps (N, *S) of a layer pair, detached, each at its own size and scale."""

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class PairInputs:
    """The inputs of a term for one layer pair."""

    term: str
    """The term's name, for errors."""
    pair: Pair
    """The names of the two points."""
    raw_student_features: Tensor
    """(N, C, *S), in the graph, in the precision that the network computed them in."""
    whole_features: tuple[Tensor, ...] | None
    """The teacher's features (N, C', *S') at each of the pair's teacher points, where the term
    declares no reduction; constants, in the teacher's precision."""
    teacher_targets: tuple[Tensor, ...]
    """The reductions of the teacher's features by ``teacher_reduction``, one a point; constants."""
    maps: dict[str, PairedMaps] = field(default_factory=dict, repr=False)
    """The maps recorded by the term, by pair."""

    @property
    def key(self) -> str:
        """The pair's name without dots, for a ``ModuleDict`` with a module for each pair."""
        return str(self.pair).replace(".", "/")

    @property
    def student_features(self) -> Tensor:
        """The student's features (N, C, *S), in the graph, in at least float32."""
        return maps.to_float32(self.raw_student_features)

    @property
    def teacher_features(self) -> Tensor:
        """The teacher's features (N, C', *S') at the pair's only teacher point, in at least
        float32; a constant.

        Raises:
            InputError: the term declares a reduction of them, or the pair has several.
        """
        if self.whole_features is None:
            raise InputError(
                f"the term {self.term} reads the teacher's whole features, but declares that it "
                "needs a reduction of them only; read pair.teacher_target, or set "
                "teacher_reduction = None"
            )
        return maps.to_float32(self._only(self.whole_features))

    @property
    def teacher_target(self) -> Tensor:
        """The reduced features (N, ...) at the pair's only teacher point.

        Raises:
            InputError: the term declares no reduction, or the pair has several teacher points.
        """
        return self._only(self._reduced())

    @property
    def teacher_map(self) -> Tensor:
        """The teacher's attention map (N, *S'), of several teacher points the mean of their
        normalized maps; for terms whose ``teacher_reduction`` is a
        :func:`attention_transfer.map_reduction`.

        Raises:
            InputError: the term declares no reduction.
        """
        return maps.mean_map(self._reduced())

    def record_maps(self, student: Tensor, teacher: Tensor) -> None:
        """Hand the pair's attention maps (N, *S) out to ``TransferOutput.maps``."""
        self.maps[str(self.pair)] = PairedMaps(student.detach(), teacher.detach())

    def _reduced(self) -> tuple[Tensor, ...]:
        if self.whole_features is not None:
            raise InputError(
                f"the term {self.term} reads a reduction of the teacher's features, but declares "
                "none; set teacher_reduction, such as at.map_reduction(), or read "
                "pair.teacher_features"
            )
        return self.teacher_targets

    def _only(self, values: tuple[Tensor, ...]) -> Tensor:
        if len(values) != 1:
            raise InputError(
                f"pair {self.pair} has {len(values)} teacher points, and only attention "
                "maps can be averaged; give this term pairs with one teacher point each"
            )
        return values[0]


@dataclass(frozen=True)
class TermInputs:
    """The inputs of a term for one batch: what it declares that it needs, and no more."""

    term: str
    """The term's name, for errors."""
    output: object
    """The student's output, as it is."""
    labels: Any
    """As they were given to the Transfer; None without labels."""
    progress: float = 0.0
    """The share of the training that is done, 0 to 1."""
    declared: dict[str, Any] = field(default_factory=dict)
    """What the term declares that it needs, by the names of the properties below."""
    maps: dict[str, PairedMaps] = field(default_factory=dict)
    """Maps that a term hands out: name of the pair -> its maps."""

    @property
    def logits(self) -> Tensor:
        """The student's logits (N, K) or (N, K, ...), in at least float32; needs
        ``needs_logits``.
        """
        logits: Tensor = self._declared("logits", "needs_logits = True")
        return logits

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits, a constant, in at least float32; needs
        ``needs_teacher_logits``.
        """
        teacher_logits: Tensor = self._declared("teacher_logits", "needs_teacher_logits = True")
        return teacher_logits

    @property
    def pairs(self) -> tuple[PairInputs, ...]:
        """The layer pairs of a term whose attribute ``pairs`` asks for them."""
        pairs: tuple[PairInputs, ...] = self._declared("pairs", "pairs = 'auto'")
        return pairs

    @property
    def input_gradients(self) -> InputGradients:
        """The student's gradients at the input; needs ``needs_input_gradient``."""
        gradients: InputGradients = self._declared("input_gradients", "needs_input_gradient = True")
        return gradients

    @property
    def teacher_gradient(self) -> Tensor:
        """The teacher's gradient at the input; needs ``needs_teacher_gradient``."""
        teacher_gradient: Tensor = self._declared(
            "teacher_gradient", "needs_teacher_gradient = True"
        )
        return teacher_gradient

    def _declared(self, what: str, how: str) -> Any:
        if what not in self.declared:
            raise InputError(
                f"the term {self.term} reads {what}, which it does not declare; set {how} in its "
                "class"
            )
        if self.declared[what] is None:
            raise InputError(
                f"the term {self.term} reads {what} while the Transfer tries its example_input, "
                "and there are no gradients without labels; read them in forward, not in check"
            )
        return self.declared[what]


class Term(nn.Module, ABC):
    """One summand of the objective: a weight times a scalar computed from a batch.

    A subclass sets ``name``, declares what it needs, and computes its raw value in ``forward``.
    Submodules and parameters of a term are trained with the student, are in the Transfer's
    ``parameters()`` and ``state_dict()``, and never in the student's. They stay in at least
    float32, as the features and logits that a term gets: ``transfer.bfloat16()`` converts the
    networks alone.

    Args:
        weight: finite, at least 0.
        schedule: ``"constant"``; ``"linear"`` or ``"cosine"``, falling to 0; or a function from
            the share of the training that is done to the factor of the weight.
        name: the key in the output, in place of the class's.

    Raises:
        InputError: a weight below 0 or not finite, or an unknown schedule.

    Example:
        >>> class LogitPenalty(Term):
        ...     name = "logit_penalty"
        ...     needs_logits = True
        ...     def forward(self, inputs):
        ...         return inputs.logits.square().mean()
        >>> LogitPenalty(weight=0.5, schedule="linear").weight_at(0.5)
        0.25
    """

    name: str
    """The term's key in ``TransferOutput.terms``: an identifier."""
    needs_logits: bool = False
    """Whether it reads the student's logits."""
    needs_teacher_logits: bool = False
    """Whether it reads the teacher's; if none does, the teacher's pass ends at its last point."""
    needs_input_gradient: bool = False
    """Whether it reads the loss's gradient at the student's input (double backpropagation)."""
    needs_teacher_gradient: bool = False
    """Whether it reads the loss's gradient at the teacher's input."""
    pairs: Pairs | None = None
    """The layer pairs it compares, as of ``--pairs``; None: none."""
    teacher_reduction: Reduction | None = None
    """What it keeps of the teacher's features at its pairs; None: all of them."""

    def __init__(
        self, weight: float = 1.0, schedule: Schedule = "constant", name: str | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.schedule = schedule
        if name is not None:
            self.name = name

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a weight is checked whenever it is set."""
        if name == "weight":
            check_weight("weight", value)
            value = value if isinstance(value, int) else float(value)
        if name == "schedule":
            check_schedule(value)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert as any module, but keep at least float32: a term computes in no less."""

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            lower = converted.is_floating_point() and converted.itemsize < 4 <= tensor.itemsize
            return tensor.to(converted.device) if lower else converted

        return super()._apply(convert, recurse)  # type: ignore[no-untyped-call]

    @abstractmethod
    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the raw scalar, a mean over the batch, without the term's weight."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the term needs a teacher."""
        return self.pairs is not None or self.needs_teacher_logits or self.needs_teacher_gradient

    def weight_at(self, progress: float) -> float:
        """Return the term's weight when ``progress`` (0 to 1) of the training is done.

        Raises:
            InputError: the schedule's function returned no finite factor of at least 0.
        """
        return self.weight * schedule_factor(self.schedule, progress)

    def check(self, inputs: TermInputs) -> None:
        """Raise an InputError if shapes do not fit, or the term could only be zero.

        It is called with the example, when ``labels`` is None and there are no gradients yet, at
        the first batch, and at every new shape of features or logits.
        """
        return

    def build(self, pairs: Sequence[PairInputs]) -> None:
        """Make the modules that the term trains, from the features of one example."""
        return

    def effective_weight(self, size: tuple[int, ...]) -> tuple[float, str] | None:
        """Return the factor on the difference of one image's maps at a pair, and that one's unit.

        A run prints it, so that pairs of different sizes can be compared. None, the default, means
        that ``weight`` says as much.

        Args:
            size: the spatial axes at which the pair is compared.
        """
        return None

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        settings = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return ", ".join(f"{key}={value!r}" for key, value in settings.items() if key != "training")


class PairTerm(Term):
    """A term that is the sum over layer pairs of one pure loss.

    A subclass sets ``name`` and computes a pair's loss in ``loss``; where it needs less of the
    teacher than whole features, it declares a ``teacher_reduction``.

    Args:
        weight: finite, at least 0.
        pairs: the layer pairs, as of :class:`attention_transfer.ActivationAttention`; None: those
            of the class, ``"auto"`` unless it sets others.
        schedule: of the weight, as of :class:`Term`.
        name: the key in the output, in place of the class's.

    Example:
        >>> class MeanActivation(PairTerm):
        ...     name = "mean_activation"
        ...     def loss(self, pair):
        ...         return (pair.student_features.mean() - pair.teacher_features.mean()).square()
        >>> MeanActivation(weight=3.0, pairs="layer1:layer2").needs_teacher
        True
    """

    pairs: Pairs | None = "auto"

    def __init__(
        self,
        weight: float = 1.0,
        pairs: Pairs | None = None,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, schedule, name)
        if pairs is not None:
            self.pairs = pairs

    @abstractmethod
    def loss(self, pair: PairInputs) -> Tensor:
        """Return the raw loss of one layer pair: a scalar, a mean over the batch."""

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the sum of the pairs' losses."""
        first = inputs.pairs[0].raw_student_features
        total = torch.zeros((), dtype=maps.to_float32(first[:0]).dtype, device=first.device)
        for pair in inputs.pairs:
            try:
                loss: object = self.loss(pair)
            except Exception as error:
                error.add_note(f"in the loss of the pair {pair.pair}")
                raise
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise InputError(
                    f"the term {self.name} returned {got} for pair {pair.pair}, expected a scalar "
                    "tensor, a batch mean"
                )
            total = total + loss
        return total


def check_weight(name: str, value: object) -> None:
    """Raise an InputError unless the value is a finite number of at least 0."""
    if not is_weight(value):
        got = repr(value) if isinstance(value, Real | str | None) else f"a {type(value).__name__}"
        raise InputError(f"{name} must be a finite number of at least 0, got {got}")


def check_power(power: float) -> None:
    """Raise an InputError unless p in |A|^p is finite and above 0."""
    if not (power > 0 and math.isfinite(power)):
        raise InputError(f"power must be a finite number above 0, got {power}; the paper used 2")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise an InputError, with the nearest name, unless the value is known."""
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {nearest(str(value), known)}")
