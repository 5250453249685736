"""Attention points: the modules of a network whose outputs have an attention map."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps.layout import Layout

__all__ = ["AttentionPoint", "PointTable", "Stage", "Unreadable"]

Stage = tuple[int, ...]
"""How often each spatial axis has been halved."""


@dataclass(frozen=True)
class AttentionPoint:
    """A module whose output can be read as an attention map."""

    name: str
    """The module's name, the outermost where several return the same tensor; ``name#key`` is one of
    several outputs.
    """
    module: str
    """The module's type."""
    layout: Layout
    channels: int
    stride: tuple[float, ...]
    """The length of each of the image's spatial axes over the grid's."""
    depth: float
    """Share of the network's floating-point operations done when the point is reached, 0 to 1."""
    aliases: tuple[str, ...] = ()
    """Other modules that return the same tensor."""
    recommended: bool = False
    """The last of its stage; or, where all maps have one size, a block at equal depths."""

    @property
    def kind(self) -> str:
        """The kind of output: ``feature map`` or ``tokens``."""
        return self.layout.kind

    @property
    def height(self) -> int:
        """The attention map's height; 1 of a signal."""
        return self.layout.grid[-2] if len(self.layout.grid) > 1 else 1

    @property
    def width(self) -> int:
        """The attention map's width, or the length of a signal's."""
        return self.layout.grid[-1]

    @property
    def stage(self) -> Stage:
        """The number of times each spatial axis has been halved, rounded."""
        return tuple(round(math.log2(stride)) for stride in self.stride)


@dataclass(frozen=True)
class Unreadable:
    """A module whose output is no feature map, and the reason."""

    name: str
    module: str
    reason: str


@dataclass(frozen=True)
class PointTable(Sequence[AttentionPoint]):
    """The attention points of a network in the order of execution.

    Indexed by position, or by a module's name or alias.
    """

    points: tuple[AttentionPoint, ...]
    unreadable: tuple[Unreadable, ...]
    input_size: tuple[int, ...]
    """Channels and spatial axes of the input: (3, height, width) of images."""
    parameters: int
    flops: int
    """Floating-point operations of one image's forward pass; a multiply-add counts as two."""

    @property
    def recommended(self) -> tuple[AttentionPoint, ...]:
        """The points to read attention at unless others are named."""
        return tuple(point for point in self.points if point.recommended)

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[AttentionPoint]:
        return iter(self.points)

    @overload
    def __getitem__(self, key: int | str) -> AttentionPoint: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[AttentionPoint, ...]: ...

    def __getitem__(self, key: int | str | slice) -> AttentionPoint | tuple[AttentionPoint, ...]:
        """Return a point by position or name.

        Raises:
            InputError: there is no such point, or it has no attention map; says why.
        """
        if not isinstance(key, str):
            return self.points[key]
        names = {name: point for point in self.points for name in (point.name, *point.aliases)}
        if key in names:
            return names[key]
        for unreadable in self.unreadable:
            if unreadable.name == key:
                raise InputError(
                    f"point {key!r} ({unreadable.module}) has no attention map: "
                    f"{unreadable.reason}; choose another one"
                )
        raise InputError(f"there is no point {key!r}; {nearest(key, names)}")
