"""Teacher targets: what the terms need of a teacher, and the teacher's answers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attention_transfer.errors import InputError, input_errors
from attention_transfer.functional.kernels import scaled_map, to_float32
from attention_transfer.functional.maps import MapKind

__all__ = [
    "Reduction",
    "TargetField",
    "TargetSpec",
    "Targets",
    "map_reduction",
    "reduction_named",
    "same_reduction",
]


@dataclass(frozen=True)
class Reduction:
    """A pure function of a teacher's features, by name: what a term keeps of them.

    The teacher applies it as soon as a layer has returned its features, and drops these; a cache
    stores the result under the name, so the name must say what the function does, settings
    included.

    Args:
        name: such as ``"mean over positions"``.
        function: features (N, C, *S) -> a tensor (N, ...), one row for each sample; it must not
            depend on the other samples of the batch.
        scale_free: whether only the direction of each sample's row matters, as of attention maps;
            a cache then stores unit vectors in float16, otherwise numbers in float32.
        promote: whether features in bf16 or fp16 are converted to float32 before the function gets
            them. False saves the memory of that copy, if the function is precise enough by itself.

    Raises:
        InputError: a name or a function that is none.

    Example:
        >>> means = Reduction("mean over positions", lambda features: features.mean(dim=(2, 3)))
        >>> means(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 4])
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(compare=False, repr=False)
    scale_free: bool = False
    promote: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"a Reduction's name must say what it does, such as 'channel means', got {name!r}"
            )
        if not callable(self.function):
            raise InputError(
                f"the reduction {name!r} needs a function of the features (N, C, *S), got "
                f"{self.function!r}"
            )
        for flag in ("scale_free", "promote"):
            if not isinstance(getattr(self, flag), bool):
                raise InputError(
                    f"{flag} of the reduction {name!r} must be True or False, got "
                    f"{getattr(self, flag)!r}"
                )

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce features (N, C, *S) to (N, ...), as a constant, in at least float32.

        Raises:
            InputError: the function failed, or returned something else than one row for each
                sample.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            values = to_float32(features) if self.promote else features
            if torch.compiler.is_compiling():
                reduced = self.function(values)
            else:
                shape = tuple(features.shape)
                with input_errors(f"the reduction {self.name!r} failed on features {shape}"):
                    reduced = self.function(values)
        if not isinstance(reduced, Tensor) or reduced.shape[:1] != features.shape[:1]:
            got = tuple(reduced.shape) if isinstance(reduced, Tensor) else type(reduced).__name__
            raise InputError(
                f"the reduction {self.name!r} must return one row for each of the "
                f"{len(features)} samples, got {got}"
            )
        return to_float32(reduced) if reduced.is_floating_point() else reduced

    def __str__(self) -> str:
        return self.name


def map_reduction(kind: MapKind = "sum", power: float = 2.0) -> Reduction:
    """Return the reduction to attention maps F, up to a factor for each image.

    Args:
        kind: ``"sum"`` or ``"max"`` over channels.
        power: p > 0 in |A|^p.

    Example:
        >>> str(map_reduction("sum", 2.0))
        'attention map, sum 2'
    """
    return Reduction(
        f"attention map, {kind} {str(float(power)).removesuffix('.0')}",
        partial(_attention_map, kind=kind, power=float(power)),
        scale_free=True,
        promote=False,  # the kernels do it, without a copy of the features
    )


def reduction_named(name: str) -> Reduction | None:
    """Return the map reduction of a name; None: it is another reduction's.

    >>> reduction_named("attention map, max 0.5") == map_reduction("max", 0.5)
    True
    """
    found = re.fullmatch(r"attention map, (sum|max) (\S+)", name)
    try:
        return found and map_reduction(found[1], float(found[2]))  # type: ignore[arg-type]
    except ValueError:
        return None


def same_reduction(one: Reduction, other: Reduction) -> bool:
    """Return whether two reductions of one name do the same and are kept alike.

    Functions do the same if they are equal, or were made by one definition with equal settings:
    those in closures, defaults, partial arguments, and objects whose methods they are.
    """
    return one == other and _same(one.function, other.function, set())


def _same(one: Any, other: Any, compared: set[tuple[int, int]]) -> bool:
    """Return whether two functions, or values that they use, are the same.

    Args:
        one: of them.
        other: of them.
        compared: pairs of objects that are being compared already, for objects in a circle.
    """
    if one is other or (id(one), id(other)) in compared:
        return True
    if type(one) is not type(other):
        return False
    compared.add((id(one), id(other)))
    if isinstance(one, Tensor):
        return one.device == other.device and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k], compared) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(
            _same(*both, compared) for both in zip(one, other, strict=True)
        )
    parts = _parts(one)
    if parts is not None:
        return _same(parts, _parts(other), compared)
    try:
        return bool(np.all(one == other))
    except Exception:  # whatever a comparison of the user's raises
        return False


def _parts(value: Any) -> object | None:
    """Return what decides what a function or an object does; None of a plain value."""
    match value:
        case partial():
            return [value.func, value.args, value.keywords]
        case MethodType():
            return [value.__func__, value.__self__]
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, type | ModuleType):
        return None
    return getattr(value, "__dict__", None)


def _attention_map(features: Tensor, kind: MapKind, power: float) -> Tensor:
    return scaled_map(features, kind, power)[0]


class TargetField(NamedTuple):
    """One thing that is read of a teacher: a point's features, reduced or whole."""

    point: str
    reduction: Reduction | None = None
    """None: the features as they are."""

    def read(self, features: Tensor) -> Tensor:
        """Return the field's value of the point's features (N, C, *S)."""
        return features if self.reduction is None else self.reduction(features)

    def __str__(self) -> str:
        return f"{self.point} ({self.reduction or 'whole activations'})"


@dataclass(frozen=True)
class TargetSpec:
    """The targets that the terms need of a teacher."""

    fields: tuple[TargetField, ...] = ()
    logits: bool = False
    gradient: bool = False
    """J, the gradient of the summed cross-entropy at the input."""

    def __bool__(self) -> bool:
        return bool(self.fields) or self.logits or self.gradient


@dataclass(frozen=True)
class Targets:
    """A teacher's answers for a batch: constants, from a forward pass or from a file."""

    fields: Mapping[TargetField, Tensor] = field(default_factory=dict)
    """Each field's value, (N, ...); attention maps (N, *S) have any scale."""
    logits: Tensor | None = None
    """(N, classes), or (N, classes, ...) for every position; None if there are none."""
    gradient: Tensor | None = None
    """J, in the shape of the input."""

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def part(self, images: slice) -> "Targets":
        """Return the targets of some of the images."""
        return self._each(lambda value: value[images])

    def check_samples(self, count: int) -> None:
        """Raise an InputError unless the targets are of as many samples."""
        values = {str(target): value for target, value in self.fields.items()}
        values |= {"logits": self.logits, "gradient": self.gradient}  # type: ignore[dict-item]
        for name, value in values.items():
            if value is not None and len(value) != count:
                raise InputError(
                    f"the teacher's targets, {name}, are of {len(value)} samples and the inputs of "
                    f"{count}; use those of transfer.targets(images) of the same images"
                )

    def read(self, target: TargetField) -> Tensor:
        """Return a field's value.

        Raises:
            InputError: it is not among the targets.
        """
        if target not in self.fields:
            known = ", ".join(map(str, self.fields)) or "nothing"
            raise InputError(
                f"the teacher's targets hold {known}, expected {target} as well; use those of "
                "transfer.targets(images)"
            )
        return self.fields[target]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        return Targets(
            {target: change(value) for target, value in self.fields.items()},
            None if self.logits is None else change(self.logits),
            None if self.gradient is None else change(self.gradient),
        )
