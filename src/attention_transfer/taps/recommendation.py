"""Which points to read attention at, where nobody says: the last of each stage."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from attention_transfer.taps.modules import module_of
from attention_transfer.taps.points import AttentionPoint, Stage

__all__ = ["ModuleSeen", "named_best", "recommended"]

BLOCKS = 4
"""Of a network whose places all have one size."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass
class ModuleSeen:
    """What is known of a module after the pass."""

    module: nn.Module
    stage: Stage | None = None
    """Of its own output, if that is a map."""
    share: float = 0.0
    """Of the network's operations that are inside it."""

    @property
    def container(self) -> bool:
        """Whether it is made of others."""
        return not isinstance(self.module, _NORMS) and any(True for _ in self.module.children())

    @property
    def levels_places(self) -> bool:
        """Whether it makes all places equally strong: F_sum^2 of a layer norm is flat."""
        kind = type(self.module).__name__.lower()
        return isinstance(self.module, nn.LayerNorm | nn.RMSNorm) or "layernorm" in kind


class Tree:
    """The modules seen, by name, and the stages of the points inside each."""

    def __init__(self, seen: dict[str, ModuleSeen], points: Iterable[AttentionPoint]) -> None:
        self.seen = seen
        self.span: dict[str, set[Stage]] = defaultdict(set)
        for point in points:
            for name in (point.name, *point.aliases):
                for outer in (module_of(name), *_ancestors(name)):
                    self.span[outer].add(point.stage)

    def is_trunk(self, name: str) -> bool:
        """Whether a module holds several stages, or nearly all of the network."""
        module = module_of(name)
        return self.is_block(name) and (len(self.span[module]) > 2 or self.seen[module].share > 0.8)

    def is_block(self, point: str) -> bool:
        """Whether a point's module is made of others."""
        return self.seen[module_of(point)].container

    def in_transition(self, point: AttentionPoint) -> bool:
        """Whether a point is inside a block that goes on to another size."""
        outer = [name for name in _ancestors(point.name) if name in self.seen]
        return any(
            self.seen[name].stage != point.stage and not self.is_trunk(name) for name in outer
        )


def named_best(names: Sequence[str], tree: Tree) -> list[str]:
    """Modules that put out the same tensor, the best name first: of the blocks that are no trunk,
    or else of the layers, the outermost.
    """
    return sorted(
        names,
        key=lambda name: (tree.is_trunk(name), not tree.is_block(name), name.count("."), name),
    )


def recommended(points: Sequence[AttentionPoint], tree: Tree) -> set[str]:
    """Names of the points at which to read attention.

    The last of each stage: outside the block that leads to the next one, a block rather than a
    layer, and not the output of a layer norm. Where all places have one size, as in a plain
    vision transformer, blocks at equal depths.
    """
    readable = [point for point in points if not _levelled(point, tree)] or list(points)
    settled = [point for point in readable if not tree.in_transition(point)] or readable
    blocks = [point for point in settled if tree.is_block(point.name)]
    if len({point.stage for point in blocks}) >= 2:
        settled = blocks
    if len({point.stage for point in settled}) == 1:
        return _at_equal_depths(blocks or settled, tree)
    last: dict[Stage, str] = {}
    for point in settled:
        if tree.is_block(point.name) or not any(point.stage == block.stage for block in blocks):
            last[point.stage] = point.name
    return set(last.values())


def _at_equal_depths(points: Sequence[AttentionPoint], tree: Tree) -> set[str]:
    """Of the series of like blocks that does most, the last of each quarter."""
    series: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    series["", ""] = {points[-1].name: 0.0}
    for point in points:
        for name in (point.name, *point.aliases):
            seen = tree.seen[module_of(name)]
            if not tree.is_trunk(name):
                kind = type(seen.module).__name__
                series[re.sub(r"\d+", "*", name), kind][point.name] = seen.share
    shares = max(series.values(), key=lambda shares: (len(shares) > 1, sum(shares.values())))
    names = list(shares)
    count = min(BLOCKS, len(names))
    return {names[round((index + 1) * len(names) / count) - 1] for index in range(count)}


def _levelled(point: AttentionPoint, tree: Tree) -> bool:
    names = (point.name, *point.aliases)
    return any(tree.seen[module_of(name)].levels_places for name in names)


def _ancestors(point: str) -> list[str]:
    parts = module_of(point).split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
