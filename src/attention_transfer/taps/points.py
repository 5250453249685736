"""The places in a network where spatial attention can be read, as values."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps.layout import Layout

__all__ = ["AttentionPoint", "PointTable", "Stage", "Unreadable"]

Stage = tuple[int, int]
"""How often height and width have been halved."""


@dataclass(frozen=True)
class AttentionPoint:
    """A place where spatial attention can be read."""

    name: str
    """The module's, the outermost where several put out the same tensor; ``name#key`` is one of
    several outputs.
    """
    module: str
    """Its type."""
    layout: Layout
    channels: int
    stride: tuple[float, float]
    """The image's height and width over the grid's."""
    depth: float
    """Share of the network's floating-point operations done when the point is reached, 0 to 1."""
    aliases: tuple[str, ...] = ()
    """Other modules that put out the same tensor."""
    recommended: bool = False
    """The last of its stage; or, where all places have one size, a block at equal depths."""

    @property
    def kind(self) -> str:
        """``feature map`` or ``tokens``."""
        return self.layout.kind

    @property
    def height(self) -> int:
        """Of the attention map."""
        return self.layout.grid[0]

    @property
    def width(self) -> int:
        """Of the attention map."""
        return self.layout.grid[1]

    @property
    def stage(self) -> Stage:
        """How often height and width have been halved, rounded."""
        down, across = (round(math.log2(stride)) for stride in self.stride)
        return down, across


@dataclass(frozen=True)
class Unreadable:
    """A module whose output is no map, and why."""

    name: str
    module: str
    reason: str


@dataclass(frozen=True)
class PointTable(Sequence[AttentionPoint]):
    """The points of a network in the order they are reached.

    Indexed by position, or by a module's name, also an alias.
    """

    points: tuple[AttentionPoint, ...]
    unreadable: tuple[Unreadable, ...]
    input_size: tuple[int, int, int]
    """Channels, height, width of the images."""
    parameters: int
    flops: int
    """Of one image's forward pass; a multiply-add counts as two."""

    @property
    def recommended(self) -> tuple[AttentionPoint, ...]:
        """Those to read attention at, if nothing speaks for others."""
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
        """A point by position or name.

        Raises:
            InputError: no attention can be read there, and why.
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
