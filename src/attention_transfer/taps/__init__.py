"""Attention points: the modules of a network where attention can be read, and reading it.

A point is a module's name, as in ``network.named_modules()``. :func:`attention_points` finds them
all, :class:`Taps` captures the outputs of some of them, and a :class:`Layout` says where the
channels and the spatial axes are in an output.
"""

from attention_transfer.taps.capture import Taps
from attention_transfer.taps.fused_layers import counting_flops
from attention_transfer.taps.inputs import (
    Inputs,
    as_floats,
    call_network,
    in_dtype,
    input_tensors,
    main_input,
    map_inputs,
    own_dtype,
    own_precision,
    with_main_input,
)
from attention_transfer.taps.layout import ALL_TOKENS, Layout
from attention_transfer.taps.modules import (
    declared_points,
    evaluating,
    structure_copy,
    to_channels_last,
    unwrapped,
)
from attention_transfer.taps.points import AttentionPoint, PointTable, Unreadable
from attention_transfer.taps.programs import as_teacher, is_program, module_hint, refuse_untrainable
from attention_transfer.taps.survey import attention_points

__all__ = [
    "ALL_TOKENS",
    "AttentionPoint",
    "Inputs",
    "Layout",
    "PointTable",
    "Taps",
    "Unreadable",
    "as_teacher",
    "attention_points",
    "call_network",
    "counting_flops",
    "declared_points",
    "evaluating",
    "in_dtype",
    "input_tensors",
    "is_program",
    "main_input",
    "map_inputs",
    "module_hint",
    "as_floats",
    "own_dtype",
    "own_precision",
    "refuse_untrainable",
    "structure_copy",
    "to_channels_last",
    "unwrapped",
    "with_main_input",
]
