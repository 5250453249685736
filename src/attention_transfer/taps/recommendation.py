"""The attention points recommended by default: the last of each stage."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from attention_transfer.taps.modules import module_of
from attention_transfer.taps.points import AttentionPoint, Stage

__all__ = ["ModuleRun", "named_best", "recommended"]

BLOCKS = 4
"""How many blocks are recommended where all maps have one size."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass
class ModuleRun:
    """A module that ran in the forward pass."""

    module: nn.Module
    stage: Stage | None = None
    """The stage of its output, if that is a feature map."""
    share: float = 0.0
    """Share of the network's operations that run inside it."""

    @property
    def container(self) -> bool:
        """Whether the module is made of others."""
        return not isinstance(self.module, _NORMS) and any(True for _ in self.module.children())

    @property
    def flattens_attention(self) -> bool:
        """Whether all positions of its output are equally strong, as F_sum^2 of a layer norm is."""
        kind = type(self.module).__name__.lower()
        return isinstance(self.module, nn.LayerNorm | nn.RMSNorm) or "layernorm" in kind


class Tree:
    """The modules that ran, by name, and the stages of the points inside each."""

    def __init__(self, seen: dict[str, ModuleRun], points: Iterable[AttentionPoint]) -> None:
        self.seen = seen
        self.span: dict[str, set[Stage]] = defaultdict(set)
        for point in points:
            for name in (point.name, *point.aliases):
                for outer in (module_of(name), *_ancestors(name)):
                    self.span[outer].add(point.stage)

    def is_trunk(self, name: str) -> bool:
        """Return whether a module holds several stages, or nearly all of the network."""
        module = module_of(name)
        return self.is_block(name) and (len(self.span[module]) > 2 or self.seen[module].share > 0.8)

    def is_block(self, point: str) -> bool:
        """Return whether a point's module is made of others."""
        return self.seen[module_of(point)].container

    def in_transition(self, point: AttentionPoint) -> bool:
        """Return whether a point is inside a block whose output has another size."""
        outer = [name for name in _ancestors(point.name) if name in self.seen]
        return any(
            self.seen[name].stage != point.stage and not self.is_trunk(name) for name in outer
        )


def named_best(names: Sequence[str], tree: Tree) -> list[str]:
    """Return the names of modules that return the same tensor, the best first.

    That is the outermost of the blocks that are no trunk, or else of the layers.
    """
    return sorted(
        names,
        key=lambda name: (tree.is_trunk(name), not tree.is_block(name), name.count("."), name),
    )


def recommended(points: Sequence[AttentionPoint], tree: Tree) -> set[str]:
    """Return the names of the points at which to read attention.

    The last of each stage: outside the block that leads to the next one, a block rather than a
    layer, and not the output of a layer norm. Where all maps have one size, as in a plain vision
    transformer, blocks at equal depths.
    """
    readable = [point for point in points if not _is_flat(point, tree)] or list(points)
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
    """Return the last of each quarter of the series of like blocks that does most operations."""
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


def _is_flat(point: AttentionPoint, tree: Tree) -> bool:
    names = (point.name, *point.aliases)
    return any(tree.seen[module_of(name)].flattens_attention for name in names)


def _ancestors(point: str) -> list[str]:
    parts = module_of(point).split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
