"""Terms over features at pairs of layers: activation attention, and whole activations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional import fused, losses, maps
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.targets import MapFunction
from attention_transfer.transfer.terms.base import (
    Observation,
    PairedMaps,
    PairFeatures,
    Term,
    check_choice,
    check_power,
    check_weight,
)

__all__ = ["ActivationAttention", "BetaSchedule", "FullActivation"]

BetaSchedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class ActivationAttention(Term):
    """beta * the sum over pairs of the attention transfer loss (paper, Eq. 2).

    See :func:`attention_transfer.functional.maps.activation_map` for ``map`` and ``power``, and
    :func:`attention_transfer.functional.losses.attention_transfer` for ``form`` and ``norm``. At a pair with
    several teacher points, the teacher's map is the :func:`attention_transfer.functional.maps.mean_map` of
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
    needs_teacher_logits: ClassVar[bool] = False

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

    @property
    def teacher_map(self) -> MapFunction:
        return MapFunction(self.map, self.power)

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
        total = maps.to_float32(observation.logits).new_zeros(())
        for pair, features, teachers in observation.pairs:
            teacher = maps.mean_map(teachers)
            loss, student = fused.attention_transfer(
                features, teacher, self.map, self.power, self.form, self.norm
            )
            observation.maps[str(pair)] = PairedMaps(student, teacher)
            total = total + loss
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
    needs_teacher_logits: ClassVar[bool] = False

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
        total = maps.to_float32(observation.logits).new_zeros(())
        for seen, regressor in zip(observation.pairs, observation.modules, strict=True):
            student = regressor(maps.to_float32(seen.student))
            total = total + losses.full_activation_transfer(student, seen.teacher)
        return total

    def weight_at(self, progress: float) -> float:
        return self.beta

    def effective_weight(self, size: tuple[int, int]) -> tuple[float, str]:
        return self.beta, "mean squared difference"
