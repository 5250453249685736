"""Points of a network: where its attention can be read, and reading it.

A point is a module's name, as in ``network.named_modules()``. :func:`attention_points` finds them
all, :class:`Taps` captures what some of them put out, and a :class:`Layout` says where channels,
height and width are in it.
"""

from attention_transfer.taps.capture import Taps
from attention_transfer.taps.layout import Layout
from attention_transfer.taps.modules import declared_points, evaluating, structure_copy, unwrapped
from attention_transfer.taps.points import AttentionPoint, PointTable, Unreadable
from attention_transfer.taps.survey import attention_points

__all__ = [
    "AttentionPoint",
    "Layout",
    "PointTable",
    "Taps",
    "Unreadable",
    "attention_points",
    "declared_points",
    "evaluating",
    "structure_copy",
    "unwrapped",
]
