"""Several teachers that answer as one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional.maps import to_float32
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer.targets import TargetField, TargetSpec
from attention_transfer.transfer.teacher import ForwardResult, FrozenTeacher

__all__ = [
    "FrozenTeachers",
    "MeanAndDeviation",
    "as_normalization",
    "frozen_teacher",
    "given_teachers",
]

MeanAndDeviation = Preprocessing | tuple[Sequence[float], Sequence[float]]


def as_normalization(given: MeanAndDeviation | None) -> Preprocessing | None:
    """A network's own, however it was given."""
    return None if given is None else Preprocessing(*given)


def given_teachers(
    teacher: nn.Module | Sequence[nn.Module] | None,
    normalization: MeanAndDeviation | list[MeanAndDeviation | None] | None,
) -> list[tuple[nn.Module, Preprocessing | None]]:
    """The teachers, each with its normalisation.

    Raises:
        InputError: there are none in the sequence, or normalisations for another number of them.
    """
    if teacher is None:
        return []
    networks = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    if not networks:
        raise InputError("got no teachers in the sequence, expected at least one network")
    if not isinstance(normalization, list):
        normalization = [normalization] * len(networks)
    if len(normalization) != len(networks):
        raise InputError(
            f"got {len(normalization)} teacher normalizations for {len(networks)} teachers, "
            "expected one for all or one for each"
        )
    return [
        (network, as_normalization(own))
        for network, own in zip(networks, normalization, strict=True)
    ]


def frozen_teacher(
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]], points: Sequence[str]
) -> FrozenTeacher | None:
    """One teacher, or several that answer as one, or none.

    Args:
        teachers: networks with their normalisations.
        points: to read; of several teachers after a teacher's number and a dot.
    """
    if not teachers:
        return None
    if len(teachers) == 1:
        network, normalization = teachers[0]
        return FrozenTeacher(network, points, normalization)
    networks, normalizations = zip(*teachers, strict=True)
    return FrozenTeachers(networks, points, normalizations)


class FrozenTeachers(FrozenTeacher):
    """Several frozen teachers that answer as one.

    Their logits are averaged, which is the geometric mean of their predictions (Hinton et al.
    2015); teachers of different classes have none in common. Features are those of all of them,
    under names that begin with the teacher's number, from 0.

    Args:
        networks: the teachers.
        points: names of the modules to read, each after its teacher's number and a dot.
        normalizations: each teacher's own.

    Example:
        >>> networks = [nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten()) for width in (4, 8)]
        >>> teachers = FrozenTeachers(networks, ["0.0", "1.0"], [None, None])
        >>> [features.shape[1] for features in teachers(torch.zeros(2, 3, 8, 8)).features.values()]
        [4, 8]
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        points: Sequence[str],
        normalizations: Sequence[Preprocessing | None],
    ) -> None:
        self.network = nn.ModuleList(networks)
        names = [point.split(".", 1) for point in points]
        self.members = [
            FrozenTeacher(
                network, [name for owner, name in names if owner == str(number)], normalization
            )
            for number, (network, normalization) in enumerate(
                zip(networks, normalizations, strict=True)
            )
        ]

    def optimize_for_inference(self, example: Tensor, dtype: torch.dtype | None = None) -> None:
        """Each."""
        for member in self.members:
            member.optimize_for_inference(example, dtype)
        self.network = nn.ModuleList(member.network for member in self.members)

    def compile_passes(self) -> None:
        """Of each."""
        for member in self.members:
            member.compile_passes()

    def remove_compiled_passes(self) -> None:
        """Of each."""
        for member in self.members:
            member.remove_compiled_passes()

    def observe(self, images: Tensor) -> ForwardResult:
        """One pass of each."""
        seen = [member.observe(images) for member in self.members]
        features = {
            f"{number}.{name}": features
            for number, answer in enumerate(seen)
            for name, features in answer.features.items()
        }
        return ForwardResult(_mean_output([answer.output for answer in seen]), features)

    def learn(self, images: Tensor) -> None:
        """Of each."""
        for member in self.members:
            member.learn(images)

    def read(self, images: Tensor, wanted: TargetSpec) -> tuple[dict[TargetField, Tensor], object]:
        """Of each."""
        readings: dict[TargetField, Tensor] = {}
        outputs = []
        for number, member in enumerate(self.members):
            own = {
                TargetField(reading.point.removeprefix(f"{number}."), reading.map): reading
                for reading in wanted.readings
                if reading.point.startswith(f"{number}.")
            }
            asked = replace(wanted, readings=tuple(own))
            if not asked:
                continue
            found, output = member.read(images, asked)
            readings |= {own[reading]: value for reading, value in found.items()}
            outputs.append(output)
        return readings, _mean_output(outputs)


def _mean_output(outputs: list[object]) -> object:
    """The mean of logits of the same classes; others as they are."""
    logits = [output for output in outputs if isinstance(output, Tensor)]
    if len(logits) < len(outputs) or len({output.shape for output in logits}) != 1:
        return outputs
    return torch.stack([to_float32(output) for output in logits]).mean(dim=0)
