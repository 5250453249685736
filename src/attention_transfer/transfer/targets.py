"""What terms want to know of a teacher, and its answers: all that a student needs of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.functional import maps
from attention_transfer.functional.kernels import scaled_map

__all__ = ["MapFunction", "TargetField", "Targets", "TargetSpec"]


class MapFunction(NamedTuple):
    """F, which makes an attention map of features: see
    :func:`attention_transfer.functional.maps.activation_map`.

    >>> str(MapFunction("sum", 2.0))
    'sum 2'
    """

    kind: maps.MapKind = "sum"
    power: float = 2.0

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W), up to a factor per image, a constant."""
        return scaled_map(features, self.kind, self.power)[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.power:g}"


class TargetField(NamedTuple):
    """What is read at a teacher's point: its attention map by F, or the features themselves."""

    point: str
    map: MapFunction | None = None

    def __str__(self) -> str:
        return f"{self.point} ({self.map or 'whole activations'})"


@dataclass(frozen=True)
class TargetSpec:
    """What is asked of a teacher."""

    readings: tuple[TargetField, ...] = ()
    logits: bool = False
    gradient: bool = False
    """J, the gradient of the summed cross-entropy at the images."""

    def __bool__(self) -> bool:
        return bool(self.readings) or self.logits or self.gradient


@dataclass(frozen=True)
class Targets:
    """A teacher's answers for a batch; constants, whichever pass or file they come from."""

    readings: Mapping[TargetField, Tensor] = field(default_factory=dict)
    """Maps (N, H, W), each image's at a scale of its own, or features (N, C, H, W)."""
    logits: Tensor | None = None
    gradient: Tensor | None = None
    """J, (N, C, H, W)."""

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def part(self, images: slice) -> "Targets":
        """Those of some of the images."""
        return self._each(lambda value: value[images])

    def read(self, reading: TargetField) -> Tensor:
        """One of the readings.

        Raises:
            InputError: it is not among them.
        """
        if reading not in self.readings:
            known = ", ".join(map(str, self.readings)) or "nothing"
            raise InputError(f"the teacher's targets hold {known}, expected {reading} as well")
        return self.readings[reading]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        return Targets(
            {reading: change(value) for reading, value in self.readings.items()},
            None if self.logits is None else change(self.logits),
            None if self.gradient is None else change(self.gradient),
        )
