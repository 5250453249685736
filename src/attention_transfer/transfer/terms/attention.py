"""Activation-based attention transfer, the paper's first half."""

from typing import Literal, get_args

from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import fused, losses, maps
from attention_transfer.functional.kernels import scaled_map
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.targets import Reduction, map_reduction
from attention_transfer.transfer.terms.base import (
    PairTerm,
    Weight,
    check_choice,
    check_power,
    check_weight,
)
from attention_transfer.transfer.terms.beta import WeightNamedBeta
from attention_transfer.transfer.terms.inputs import PairInputs, TermInputs

__all__ = ["ActivationAttention", "Pooling"]

Pooling = Literal["maps", "features"]


class ActivationAttention(WeightNamedBeta, PairTerm):
    """beta * the sum over layer pairs of the attention transfer loss (paper, Eq. 2).

    The student's map is compared with the teacher's at each pair; at a pair with several teacher
    points, with the :func:`~attention_transfer.functional.maps.mean_map` of theirs. Larger maps
    are average-pooled to the smaller size.

    Args:
        beta: the weight; what it means depends on ``form``. Or ``"auto"``: for layer pair j of J,
            min(1000, N_j / (sqrt(J) * A_j)), where N_j is the norm of the gradient that everything
            else sends to the student's point, and A_j that of the pair's own loss without a
            weight, both as running means over the steps before: attention is then never stronger
            than what the student learns from otherwise, and nothing where it learns from nothing
            else. The first step measures only.
        map: ``"sum"`` or ``"max"`` over channels: F_sum^p or F_max^p.
        power: p > 0 in |A|^p.
        form: ``"code"``, ``"paper"`` or ``"paper-eq2"``: see
            :func:`~attention_transfer.functional.losses.attention_transfer`.
        pairs: ``"auto"``, ``"auto-N"``, ``"student.layer:teacher.layer,..."`` or a list of pairs.
        norm: the norm of the two paper forms, at least 1.
        schedule: beta over the training: ``"constant"``; ``"linear"`` or ``"cosine"``, falling to
            0; or a function of the progress.
        name: the key in the output.
        pooling: ``"maps"``, or ``"features"``: where sizes differ, the features are pooled and
            their maps compared, as RepDistiller does. That takes the teacher's whole features,
            which no cache holds.

    Raises:
        InputError: a setting out of its range; at the first batch, pairs that do not fit.

    Example:
        >>> ActivationAttention(beta=1000.0, schedule="linear").weight_at(0.25)
        750.0
    """

    name = "activation_attention"
    largest_beta = 1000.0
    """The paper's own beta."""

    def __init__(
        self,
        beta: Weight = 1000.0,
        map: maps.MapKind = "sum",
        power: float = 2.0,
        form: losses.TransferForm = "code",
        pairs: Pairs = "auto",
        norm: float = 2.0,
        schedule: Schedule = "constant",
        name: str | None = None,
        pooling: Pooling = "maps",
    ) -> None:
        check_weight("beta", beta, auto=True)
        super().__init__(beta, pairs, schedule, name)
        check_choice("map", map, get_args(maps.MapKind))
        check_choice("form", form, get_args(losses.TransferForm))
        check_choice("pooling", pooling, get_args(Pooling))
        check_power(power)
        if not norm >= 1:
            raise InputError(f"norm must be at least 1, got {norm}; the paper used 2")
        self.map, self.power, self.form, self.norm = map, power, form, norm
        self.pooling = pooling

    @property
    def teacher_reduction(self) -> Reduction | None:  # type: ignore[override]
        """The teacher's attention map by the same F; None where its features are pooled first."""
        return map_reduction(self.map, self.power) if self.pooling == "maps" else None

    def check(self, inputs: TermInputs) -> None:
        for pair in inputs.pairs:
            features = pair.raw_student_features
            teacher = (
                pair.teacher_features[:, 0] if self.pooling == "features" else pair.teacher_map
            )
            axes = features.dim() - 2, teacher.dim() - 1
            if axes[0] != axes[1]:
                raise InputError(
                    f"pair {pair.pair} compares maps of {axes[0]} and {axes[1]} spatial axes; "
                    "choose points whose maps have the same axes"
                )
            if set(maps.common_size(features.shape[2:], teacher.shape[1:])) == {1}:
                raise InputError(
                    f"pair {pair.pair} would be compared on a map of one position, such as a 1x1 "
                    "map, where attention is the same for any image (got student features "
                    f"{tuple(features.shape)} and a teacher's map {tuple(teacher.shape)}); choose "
                    "earlier points"
                )

    def loss(self, pair: PairInputs) -> Tensor:
        features, teacher = self._of_pair(pair)
        loss, student = fused.attention_transfer(
            features, teacher, self.map, self.power, self.form, self.norm
        )
        pair.record_maps(student, teacher)
        return loss

    def _of_pair(self, pair: PairInputs) -> tuple[Tensor, Tensor]:
        """Return the student's features and the teacher's map."""
        if self.pooling == "maps":
            return pair.raw_student_features, pair.teacher_map
        student, teacher = pair.raw_student_features, pair.teacher_features
        size = maps.common_size(student.shape[2:], teacher.shape[2:])
        if tuple(student.shape[2:]) != size:
            student = maps.pool(pair.student_features, size)
        if tuple(teacher.shape[2:]) != size:
            teacher = maps.pool(teacher, size)
        return student, scaled_map(teacher, self.map, self.power)[0]

    def effective_weight(self, size: tuple[int, ...]) -> tuple[float, str] | None:
        if isinstance(self.weight, str):
            return None
        return losses.effective_weight(self.weight, self.form, size)
