"""The self-attention layers of vision transformers: their queries, keys and values."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer.errors import InputError
from attention_transfer.functional.maps import to_float32
from attention_transfer.taps import ALL_TOKENS, unwrapped

__all__ = ["AttentionLayer", "Projection", "attention_layers"]

_TIMM = ("timm.layers.attention", "timm.models.vision_transformer")
"""The modules in which timm has the attention of its VisionTransformer."""


class Projection(nn.Module, ABC):
    """The part of an attention layer between what is tapped and the softmax.

    Args:
        heads: of the layer.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    @abstractmethod
    def forward(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (N, heads, L, d), of a tapped output (N, L, C)."""

    def _heads(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (N, L, 3 * heads * d)."""
        parts = output.reshape(*output.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]


class _OfProjections(Projection):
    """After a layer that computes all three, such as timm's ``qkv``."""

    def __init__(self, heads: int, query_norm: nn.Module, key_norm: nn.Module) -> None:
        super().__init__(heads)
        self.query_norm, self.key_norm = query_norm, key_norm

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self._heads(output)
        return _in_float32(self.query_norm, queries), _in_float32(self.key_norm, keys), values


class _OfInput(Projection):
    """After the layer before torch's attention, by the attention's own weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention.num_heads)
        self.attention = attention

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = (
            None if one is None else one.to(output.dtype)
            for one in (self.attention.in_proj_weight, self.attention.in_proj_bias)
        )
        assert weight is not None
        return self._heads(functional.linear(output, weight, bias))


class AttentionLayer(NamedTuple):
    """A self-attention layer, and how to read its attention."""

    name: str
    point: str
    """What is tapped."""
    projection: Projection


def attention_layers(network: nn.Module) -> list[AttentionLayer]:
    """Return the self-attention layers of a vision transformer, in the order of its modules.

    They are those of timm's and torchvision's VisionTransformer, whose softmax takes nothing but
    queries and keys (no relative positions, no windows).

    Raises:
        InputError: there are none.

    Example:
        >>> attention_layers(nn.Linear(2, 2))
        Traceback (most recent call last):
        attention_transfer.errors.InputError: Linear has no self-attention layer whose attention \
can be read, expected timm's or torchvision's VisionTransformer; give such networks, or leave \
attention distillation out
    """
    layers = list(_found(unwrapped(network)))
    if not layers:
        raise InputError(
            f"{type(unwrapped(network)).__name__} has no self-attention layer whose attention can "
            "be read, expected timm's or torchvision's VisionTransformer; give such networks, or "
            "leave attention distillation out"
        )
    return layers


def _found(network: nn.Module) -> Iterator[AttentionLayer]:
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        kind, qkv = type(module), getattr(module, "qkv", None)
        attention = getattr(module, "self_attention", None)
        if kind.__module__ in _TIMM and kind.__name__ == "Attention" and isinstance(qkv, nn.Linear):
            query_norm, key_norm = (getattr(module, f"{one}_norm", nn.Identity()) for one in "qk")
            projection = _OfProjections(int(module.num_heads), query_norm, key_norm)
            yield AttentionLayer(name, f"{prefix}qkv{ALL_TOKENS}", projection)
        elif isinstance(attention, nn.MultiheadAttention) and _reads_norm_alone(module, attention):
            of_input = _OfInput(attention)
            yield AttentionLayer(f"{prefix}self_attention", f"{prefix}ln_1{ALL_TOKENS}", of_input)


def _reads_norm_alone(block: nn.Module, attention: nn.MultiheadAttention) -> bool:
    """Return whether a block is torchvision's: queries, keys and values are those of its norm."""
    plain = attention.batch_first and attention.in_proj_weight is not None
    return hasattr(block, "ln_1") and plain and attention.bias_k is None


def _in_float32(module: nn.Module, values: Tensor) -> Tensor:
    """Run a module on values of at least float32, whatever dtype its weights have."""
    weights = dict(module.named_parameters())
    if all(weight.dtype == values.dtype for weight in weights.values()):
        result: Tensor = module(values)
        return result
    converted = {name: to_float32(weight).to(values.dtype) for name, weight in weights.items()}
    return torch.func.functional_call(module, converted, values)  # type: ignore[no-any-return]
