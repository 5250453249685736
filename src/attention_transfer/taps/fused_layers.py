"""Layers that torch runs by one fused kernel: what happens inside them is made visible.

In eval mode without gradients ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` call one
kernel in place of their modules, and ``nn.TransformerEncoder`` packs padded tokens into nested
tensors, which have no axes to read a map from. The counter of operations knows none of these, nor
the CPU's kernels for attention and recurrent layers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counting_flops", "unfused_attention"]

Shape = tuple[int, ...]


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Run torch's attention layers module by module inside the block, whatever the mode.

    >>> with unfused_attention():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def counting_flops() -> Iterator["FlopCounterMode"]:
    """Count the floating-point operations of matrix products and convolutions in the block.

    A multiply-add counts as two. The number is the same on fake tensors, in memory, in train and in
    eval mode, with and without gradients.

    Example:
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> tokens = torch.rand(1, 4, 8)
        >>> with counting_flops() as counter, torch.no_grad():
        ...     _ = layer(tokens, tokens, tokens)
        >>> counter.get_total_flops()  # four products (4, 8) x (8, 8), and twice (4, 4, 8)
        2560
    """
    # It imports Triton, which takes as long as all of this package.
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    kernels = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer,
        torch.ops.aten._cudnn_rnn: _recurrent_layers,
    }
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    with unfused_attention(), counter:
        yield counter


def _recurrent_layer(inputs: Shape, *weights: Any, **_: Any) -> int:
    """Count one direction of one layer, on (steps, N, features)."""
    return _recurrent_layers(inputs, weights[:2])


def _recurrent_layers(inputs: Shape, weights: Any, *_: Any, **__: Any) -> int:
    """Count all layers: each weight matrix is applied at every step to every sample."""
    matrices: int = sum(math.prod(weight) for weight in weights if len(weight) == 2)
    return 2 * inputs[0] * inputs[1] * matrices
