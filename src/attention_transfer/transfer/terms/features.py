"""Full-activation transfer, the baseline that attention transfer beats."""

from collections.abc import Sequence

from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.terms.base import PairTerm, Weight, check_weight
from attention_transfer.transfer.terms.beta import WeightNamedBeta
from attention_transfer.transfer.terms.inputs import PairInputs

__all__ = ["FullActivation"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By the number of spatial axes."""


class FullActivation(WeightNamedBeta, PairTerm):
    """beta * the sum over layer pairs of the mean squared difference of whole activations (F-ActT).

    Where channels differ, a 1x1 convolution takes the student's features to the teacher's
    channels. It trains with the student and is no part of the student's weights; the Transfer
    makes it from its ``example_input``.

    Args:
        beta: the weight, or ``"auto"``, as of :class:`attention_transfer.ActivationAttention`.
        pairs: the layer pairs, as of :class:`attention_transfer.ActivationAttention`.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> FullActivation(beta=0.5).weight_at(0.0)
        0.5
    """

    name = "full_activation"

    def __init__(
        self,
        beta: Weight = 1.0,
        pairs: Pairs = "auto",
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        check_weight("beta", beta, auto=True)
        super().__init__(beta, pairs, schedule, name)
        self.regressors = nn.ModuleDict()

    def build(self, pairs: Sequence[PairInputs]) -> None:
        self.regressors = nn.ModuleDict()
        for pair in pairs:
            student, teacher = pair.student_features, pair.teacher_features
            channels = student.shape[1], teacher.shape[1]
            convolution = _CONVOLUTIONS[student.dim() - 2]
            self.regressors[pair.key] = (
                convolution(*channels, 1, dtype=student.dtype)
                if channels[0] != channels[1]
                else nn.Identity()
            )

    def loss(self, pair: PairInputs) -> Tensor:
        if pair.key not in self.regressors:
            raise InputError(
                "FullActivation makes its 1x1 convolutions when the Transfer is built; "
                "pass example_input=images[:1] to Transfer"
            )
        student = self.regressors[pair.key](pair.student_features)
        return losses.full_activation_transfer(student, pair.teacher_features)

    def effective_weight(self, size: tuple[int, ...]) -> tuple[float, str] | None:
        if isinstance(self.weight, str):
            return None
        return self.weight, "mean squared difference"
