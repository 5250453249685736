"""The base classes of terms: a term turns what a batch gave into one named scalar.

A term is a module: what it trains is found like any module's parameters. It holds settings and
calls a pure function; the objective (:class:`attention_transfer.Transfer`) treats all terms alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.functional import maps
from attention_transfer.taps import Inputs
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.schedule import (
    Schedule,
    check_schedule,
    is_weight,
    schedule_factor,
)
from attention_transfer.transfer.targets import Reduction
from attention_transfer.transfer.terms.inputs import PairInputs, TermInputs

__all__ = [
    "AUTO",
    "PairTerm",
    "Term",
    "Weight",
    "check_choice",
    "check_power",
    "check_weight",
]

AUTO: Literal["auto"] = "auto"
"""The weight of a term whose layer pairs are weighed by their gradients."""

Weight = float | Literal["auto"]


class Term(nn.Module, ABC):
    """One summand of the objective: a weight times a scalar computed from a batch.

    A subclass sets ``name``, declares what it needs, and computes its raw value in ``forward``.
    Submodules and parameters of a term are trained with the student, are in the Transfer's
    ``parameters()`` and ``state_dict()``, and never in the student's. They stay in at least
    float32, as the features and logits that a term gets: ``transfer.bfloat16()`` converts the
    networks alone.

    Args:
        weight: finite, at least 0.
        schedule: ``"constant"``; ``"linear"`` or ``"cosine"``, falling to 0; ``"warmup-0.1"``,
            rising from 0 over the first tenth of the training; or a function from the share of the
            training that is done to the factor of the weight.
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

    weight: Weight
    """Finite, at least 0; ``"auto"`` of a term that compares layers or reads input gradients."""
    largest_beta: float = 1e6
    """The largest weight under "auto", which bounds it where the loss has almost no gradient."""
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
        self, weight: Weight = 1.0, schedule: Schedule = "constant", name: str | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.schedule = schedule
        if name is not None:
            self.name = name

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a weight is checked whenever it is set."""
        if name == "weight":
            check_weight("weight", value, isinstance(self, PairTerm) or self.needs_input_gradient)
            value = value if isinstance(value, int | str) else float(value)
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

        Where the weight is ``"auto"``, it is the schedule's factor of each layer pair's.

        Raises:
            InputError: the schedule's function returned no finite factor of at least 0.
        """
        factor = schedule_factor(self.schedule, progress)
        return factor if isinstance(self.weight, str) else self.weight * factor

    def check(self, inputs: TermInputs) -> None:
        """Raise an InputError if shapes do not fit, or the term could only be zero.

        It is called with the example, when ``labels`` is None and there are no gradients yet, at
        the first batch, and at every new shape of features or logits.
        """
        return

    def bind(self, networks: Sequence[tuple[nn.Module, Inputs | None]]) -> None:
        """Read what the term needs of the networks themselves, such as a classifier's weights.

        It is called when the Transfer is built, before layer pairs are found.

        Args:
            networks: the student and the teachers, each with an example of its inputs, if given.
        """
        return

    def reduction_at(self, point: str) -> Reduction | None:
        """Return what the term keeps of the teacher's features at a point."""
        return self.teacher_reduction

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
        weight: finite, at least 0; or ``"auto"``: one for each layer pair, by the norms of the
            gradients at the student's point, as of
            :class:`attention_transfer.ActivationAttention`.
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
        weight: Weight = 1.0,
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
        return sum(map(self.pair_loss, inputs.pairs), start=self.zero(inputs))

    def pair_loss(self, pair: PairInputs) -> Tensor:
        """Return the loss of one layer pair, checked to be a scalar.

        Raises:
            InputError: it is no scalar.
        """
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
        return loss

    def zero(self, inputs: TermInputs) -> Tensor:
        """Return the sum of no losses, on the features' device."""
        first = inputs.pairs[0].raw_student_features
        return torch.zeros((), dtype=maps.to_float32(first[:0]).dtype, device=first.device)


def check_weight(name: str, value: object, auto: bool = False) -> None:
    """Raise an InputError unless the value is a finite number of at least 0, or "auto" if that is
    allowed.
    """
    if is_weight(value) or (auto and value == AUTO):
        return
    got = repr(value) if isinstance(value, Real | str | None) else f"a {type(value).__name__}"
    if value == AUTO:
        got += ", which is for terms that compare layers or read input gradients"
    expected = "a finite number of at least 0" + (f', or "{AUTO}"' if auto else "")
    raise InputError(f"{name} must be {expected}, got {got}")


def one_teacher(
    term: Term, networks: Sequence[tuple[nn.Module, Inputs | None]]
) -> tuple[tuple[nn.Module, Inputs | None], tuple[nn.Module, Inputs | None]]:
    """Return the student and the teacher that a term is bound to, each with an example.

    Raises:
        InputError: there are several teachers.
    """
    if len(networks) != 2:
        raise InputError(
            f"the term {term.name} compares the student with one teacher, got {len(networks) - 1}; "
            "give one teacher, or leave the term out"
        )
    student, teacher = networks
    return student, teacher


def refuse_another(term: Term, before: Sequence[object], student: object) -> None:
    """Raise an InputError if a term is bound to another student, or part of one, already."""
    if before and before[0] is not student:
        raise InputError(
            f"the term {term.name} belongs to another Transfer's student already; make a new "
            f"{type(term).__name__} for this one"
        )


def check_power(power: float) -> None:
    """Raise an InputError unless p in |A|^p is finite and above 0."""
    if not (power > 0 and math.isfinite(power)):
        raise InputError(f"power must be a finite number above 0, got {power}; the paper used 2")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise an InputError, with the nearest name, unless the value is known."""
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {nearest(str(value), known)}")
