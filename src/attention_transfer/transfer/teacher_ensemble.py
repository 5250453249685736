"""Several teachers that answer as one."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional.maps import to_float32
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Inputs, as_teacher, module_hint, refuse_untrainable
from attention_transfer.transfer.forward import FindLogits, ForwardResult, find_logits, logits_in
from attention_transfer.transfer.targets import TargetField, TargetSpec
from attention_transfer.transfer.teacher import FrozenTeacher

__all__ = [
    "MeanAndDeviation",
    "TeacherEnsemble",
    "as_preprocessing",
    "check_network",
    "check_separate",
    "frozen_teacher",
    "teachers_with_preprocessing",
]

MeanAndDeviation = Preprocessing | tuple[Sequence[float], Sequence[float]]


def as_preprocessing(preprocessing: MeanAndDeviation | None) -> Preprocessing | None:
    """Return a Preprocessing, also of a pair (means, standard deviations)."""
    return None if preprocessing is None else Preprocessing(*preprocessing)


def teachers_with_preprocessing(
    teacher: nn.Module | Sequence[nn.Module] | None,
    preprocessing: MeanAndDeviation | list[MeanAndDeviation | None] | None,
) -> list[tuple[nn.Module, Preprocessing | None]]:
    """Return the teachers, each with its preprocessing.

    Raises:
        InputError: it is no network; the sequence is empty, or has another length than the
            preprocessings.
    """
    if teacher is None:
        return []
    given: Any = teacher
    several = isinstance(given, Iterable) and not isinstance(given, str | nn.Module)
    networks: list[Any] = list(given) if several else [given]
    for network in networks:
        check_network("teacher", network)
    if not networks:
        raise InputError("got no teachers in the sequence, expected at least one network")
    if not isinstance(preprocessing, list):
        preprocessing = [preprocessing] * len(networks)
    if len(preprocessing) != len(networks):
        raise InputError(
            f"got {len(preprocessing)} teacher normalizations for {len(networks)} teachers, "
            "expected one for all or one for each"
        )
    return [
        (as_teacher(network), as_preprocessing(own))
        for network, own in zip(networks, preprocessing, strict=True)
    ]


def check_network(role: str, network: object) -> None:
    """Raise an InputError unless a student or teacher is a module."""
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{role} must be a torch.nn.Module, got {network!r}"
            + (module_hint(network) or "; at.models.build(name) builds a network by its name")
        )
    if role == "student":
        refuse_untrainable(network)


def check_separate(student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Raise an InputError if a student shares parameters with a teacher, which is frozen."""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for teacher in teachers:
        if teacher is student:
            raise InputError(
                "student and teacher are the same network, which could not learn, as a teacher "
                "is frozen; give two, such as copy.deepcopy(student)"
            )
        shared = [names[id(one)] for one in teacher.parameters() if id(one) in names]
        if shared:
            raise InputError(
                f"the student shares its parameter {shared[0]!r} with a teacher, whose weights "
                "are frozen; give a teacher of its own, such as copy.deepcopy(teacher)"
            )


def frozen_teacher(
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]],
    points: Sequence[str],
    logits: FindLogits = find_logits,
) -> FrozenTeacher | None:
    """Return one frozen teacher, several that answer as one, or None without any.

    Args:
        teachers: networks with their preprocessing.
        points: to read; of several teachers after a teacher's number and a dot.
        logits: finds the logits in a network's output.
    """
    if not teachers:
        return None
    if len(teachers) == 1:
        network, preprocessing = teachers[0]
        return FrozenTeacher(network, points, preprocessing, logits)
    networks, preprocessings = zip(*teachers, strict=True)
    return TeacherEnsemble(networks, points, preprocessings, logits)


class TeacherEnsemble(FrozenTeacher):
    """Several frozen teachers that answer as one.

    Their logits are averaged, which is the geometric mean of their predictions (Hinton et al.
    2015); teachers of different classes have no logits in common. Features are those of all of
    them, under names that begin with the teacher's number, from 0.

    Args:
        networks: the teachers.
        points: names of the modules to read, each after its teacher's number and a dot.
        preprocessings: each teacher's own.
        logits: finds the logits in a network's output.

    Example:
        >>> networks = [nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten()) for width in (4, 8)]
        >>> teachers = TeacherEnsemble(networks, ["0.0", "1.0"], [None, None])
        >>> [features.shape[1] for features in teachers(torch.zeros(2, 3, 8, 8)).features.values()]
        [4, 8]
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        points: Sequence[str],
        preprocessings: Sequence[Preprocessing | None],
        logits: FindLogits = find_logits,
    ) -> None:
        self.network = nn.ModuleList(networks)
        self.find_logits = find_logits  # the members' answers are logits already
        names = [point.split(".", 1) for point in points]
        self.members = [
            FrozenTeacher(
                network,
                [name for owner, name in names if owner == str(number)],
                preprocessing,
                logits,
            )
            for number, (network, preprocessing) in enumerate(
                zip(networks, preprocessings, strict=True)
            )
        ]

    def optimize_for_inference(self, example: Inputs, dtype: torch.dtype | None = None) -> None:
        """Answer from an inference copy of each teacher from now on."""
        for member in self.members:
            member.optimize_for_inference(example, dtype)
        self.network = nn.ModuleList(member.network for member in self.members)

    def compile_passes(self) -> None:
        """Compile each teacher's passes from now on."""
        for member in self.members:
            member.compile_passes()

    def remove_compiled_passes(self) -> None:
        """Remove each teacher's compiled passes, with their hooks."""
        for member in self.members:
            member.remove_compiled_passes()

    def forward(self, inputs: Inputs) -> ForwardResult:
        """Return the mean logits and all teachers' features, differentiable in the inputs."""
        results = [member.forward(inputs) for member in self.members]
        features = {
            f"{number}.{name}": features
            for number, result in enumerate(results)
            for name, features in result.features.items()
        }
        return ForwardResult(self._mean_logits([result.output for result in results]), features)

    def learn_layouts(self, inputs: Inputs) -> None:
        """Find out how to read each teacher's points."""
        for member in self.members:
            member.learn_layouts(inputs)

    def read(self, inputs: Inputs, spec: TargetSpec) -> tuple[dict[TargetField, Tensor], object]:
        """Return all teachers' fields, detached, and the mean of their logits."""
        fields: dict[TargetField, Tensor] = {}
        outputs = []
        for number, member in enumerate(self.members):
            members_fields = {
                TargetField(target.point.removeprefix(f"{number}."), target.reduction): target
                for target in spec.fields
                if target.point.startswith(f"{number}.")
            }
            members_spec = replace(spec, fields=tuple(members_fields))
            if not members_spec:
                continue
            values, output = member.read(inputs, members_spec)
            fields |= {members_fields[target]: value for target, value in values.items()}
            outputs.append(output)
        return fields, self._mean_logits(outputs)

    def _mean_logits(self, outputs: list[object]) -> object:
        """Return the mean of logits of the same classes; the outputs where there are none."""
        logits = [
            found
            for member, output in zip(self.members, outputs, strict=False)
            if output is not None and (found := logits_in(output, member.find_logits)) is not None
        ]
        if len(logits) < len(outputs) or len({found.shape for found in logits}) != 1:
            return outputs
        return torch.stack([to_float32(found) for found in logits]).mean(dim=0)
