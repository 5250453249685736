"""Attention maps of activations: where a network looks."""

from attention_transfer.maps.functions import (
    MapKind,
    activation_map,
    common_size,
    mean_map,
    normalize,
    promoted,
    resize,
)
from attention_transfer.maps.scale_free import (
    normalized_map,
    scale_free_map,
)

__all__ = [
    "MapKind",
    "activation_map",
    "common_size",
    "mean_map",
    "normalize",
    "normalized_map",
    "promoted",
    "resize",
    "scale_free_map",
]
