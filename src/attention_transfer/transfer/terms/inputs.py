"""What a term sees of a batch: what it declares that it needs, and no more."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import maps
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.pairing import Pair

__all__ = ["PairInputs", "PairedMaps", "TermInputs"]


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
