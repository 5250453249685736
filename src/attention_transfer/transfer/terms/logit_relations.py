"""Terms over logits that later papers put beside attention transfer: the yardsticks of today."""

from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.terms.base import check_weight
from attention_transfer.transfer.terms.inputs import TermInputs
from attention_transfer.transfer.terms.logits import SoftTargets, check_classes, check_temperature

__all__ = ["DIST", "DKD", "LogitStandardization"]


class _SeveralClasses(SoftTargets):
    """Soft targets that mean nothing for fewer than two classes."""

    def __init__(
        self, weight: float, temperature: float, usual: float, schedule: Schedule, name: str | None
    ) -> None:
        super().__init__(weight, schedule, name)
        check_temperature(temperature, usual)
        self.temperature = temperature

    def check(self, inputs: TermInputs) -> None:
        check_classes(self.name, inputs)
        if inputs.logits.shape[1] < 2:
            raise InputError(
                f"{self.name} compares the classes of an image, and could only be zero for logits "
                f"{tuple(inputs.logits.shape)} of one class; leave it out"
            )


class DIST(_SeveralClasses):
    """weight * DIST (Huang et al., NeurIPS 2022): relations of the predictions, by Pearson's
    correlation. See :func:`attention_transfer.functional.losses.dist`.

    The relation between a class's images is one of the images that are computed together: of a
    micro-batch, and of each process's share of a batch.

    The defaults are those of the authors' code on ImageNet; on CIFAR-100 it has temperature 4.

    Args:
        weight: finite, at least 0.
        beta: of the relation between an image's classes, at least 0.
        gamma: of the relation between a class's images, at least 0. It takes a batch of several
            images: of one, it is 0.
        temperature: tau > 0.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> DIST(weight=2.0, temperature=4.0).name
        'dist'
    """

    name = "dist"

    def __init__(
        self,
        weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, temperature, 1, schedule, name)
        check_weight("beta", beta)
        check_weight("gamma", gamma)
        self.beta, self.gamma = beta, gamma

    def forward(self, inputs: TermInputs) -> Tensor:
        return losses.dist(
            inputs.logits, inputs.teacher_logits, self.beta, self.gamma, self.temperature
        )


class LogitStandardization(_SeveralClasses):
    """weight * distillation of standardized logits (Sun et al., CVPR 2024). See
    :func:`attention_transfer.functional.losses.logit_standardization`.

    Its paper trains with weight 9 and temperature 2, beside the cross-entropy of weight 0.1 on
    CIFAR-100.

    Args:
        weight: finite, at least 0.
        temperature: tau > 0, the base temperature.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> LogitStandardization().weight
        9.0
    """

    name = "logit_standardization"

    def __init__(
        self,
        weight: float = 9.0,
        temperature: float = 2.0,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, temperature, 2, schedule, name)

    def forward(self, inputs: TermInputs) -> Tensor:
        return losses.logit_standardization(inputs.logits, inputs.teacher_logits, self.temperature)


class DKD(_SeveralClasses):
    """weight * decoupled knowledge distillation (Zhao et al., CVPR 2022). See
    :func:`attention_transfer.functional.losses.dkd`.

    Labels must be class indices; -100 does not count. Its paper has alpha 1, beta 8 and
    temperature 4 on CIFAR-100, beside the cross-entropy of weight 1, and lets the weight rise over
    the first 20 of 240 epochs: ``schedule="warmup-0.0833"``.

    Args:
        weight: finite, at least 0.
        alpha: of the target class's part, at least 0.
        beta: of the other classes' part, at least 0.
        temperature: T > 0.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> round(DKD(schedule="warmup-0.0833").weight_at(10 / 240), 2)
        0.5
    """

    name = "dkd"

    def __init__(
        self,
        weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, temperature, 4, schedule, name)
        check_weight("alpha", alpha)
        check_weight("beta", beta)
        self.alpha, self.beta = alpha, beta

    def forward(self, inputs: TermInputs) -> Tensor:
        try:
            return losses.dkd(
                inputs.logits,
                inputs.teacher_logits,
                inputs.labels,
                self.alpha,
                self.beta,
                self.temperature,
            )
        except ValueError as error:
            raise InputError(f"{error}") from None
