"""Attention maps of activations: pure functions from feature maps to where a network looks.

A layer's features A have shape (N, C, H, W). A mapping F takes the absolute value of an
activation as the importance of its neuron and reduces the channels (Zagoruyko & Komodakis,
ICLR 2017, section 3.1):

    F_sum^p(A) = sum_c |A_c|^p        F_max^p(A) = max_c |A_c|^p        p > 0

Everything here is computed in at least float32, whatever the dtype of the features and
whatever the state of autocast: float16 and bfloat16 are promoted, float64 stays.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "MapKind",
    "activation_map",
    "check_features",
    "common_size",
    "largest_magnitude",
    "mean_map",
    "normalize",
    "to_float32",
    "resize",
]

MapKind = Literal["sum", "max"]


def activation_map(features: Tensor, kind: MapKind = "sum", power: float = 2.0) -> Tensor:
    r"""The attention map F of a layer's features: F_sum^p or F_max^p, exactly as in the paper.

    .. math:: F_{sum}^p(A) = \sum_c |A_c|^p \qquad F_{max}^p(A) = \max_c |A_c|^p

    Args:
        features: (N, C, H, W), any floating dtype.
        kind: ``"sum"`` spreads over the image, ``"max"`` keeps the most active channel.
        power: p > 0, real. A larger p gives more weight to the most active channels.

    Returns:
        (N, H, W), non-negative, in at least float32. Where p < 1, the gradient at an activation
        of zero is defined as zero.

    Raises:
        ValueError: features are not (N, C, H, W), p is not positive, or the kind is unknown.
        TypeError: features are not of a floating dtype.

    Example:
        >>> features = torch.tensor([[[[1.0, -2.0]], [[-3.0, 4.0]]]])  # N=1, C=2, H=1, W=2
        >>> activation_map(features, kind="sum", power=2)
        tensor([[[10., 20.]]])
        >>> activation_map(features, kind="max", power=1)
        tensor([[[3., 4.]]])
    """
    check_features(features, kind, power)
    magnitude = to_float32(features)
    if kind == "max":
        return _absolute_power(magnitude.abs().amax(dim=1), power)
    return _absolute_power(magnitude, power).sum(dim=1)


def normalize(maps: Tensor) -> Tensor:
    r"""Attention maps as unit vectors, Q / ||Q||_2 with Q = vec(F(A)) (paper, Eq. 2).

    Args:
        maps: (N, H, W), any finite values: each map is divided by its own largest magnitude
            first, so neither 1e30 nor 1e-30 overflows or vanishes.

    Returns:
        (N, H*W) in at least float32, each row of l2 norm 1. An all-zero map gives a row of
        zeros, with a gradient of zero.

    Raises:
        ValueError: maps are not (N, H, W).

    Example:
        >>> normalize(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if maps.dim() != 3:
        raise ValueError(f"maps must be (N, H, W), got {_axes(maps)}")
    vectors = to_float32(maps).flatten(1)
    vectors = vectors / largest_magnitude(vectors)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # Two wheres: the first keeps 1/0 out of the backward pass, the second gives zero maps zero.
    inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
    return vectors * inverse


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps adaptive-average-pooled to a size no larger than their own on either axis.

    Args:
        maps: (N, H, W).
        size: the height and width wanted.

    Returns:
        (N, *size).

    Example:
        >>> resize(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]), (1, 2))
        tensor([[[3., 5.]]])
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.adaptive_avg_pool2d(maps.unsqueeze(1), size).squeeze(1)


def common_size(*sizes: tuple[int, ...]) -> tuple[int, int]:
    """The height and width at which maps are compared: axis by axis, the smallest.

    >>> common_size((32, 8), (16, 16))
    (16, 8)
    """
    height, width = map(min, zip(*sizes, strict=True))
    return height, width


def mean_map(maps: Sequence[Tensor]) -> Tensor:
    """Where several networks look, taken together: the mean of their normalised maps.

    Args:
        maps: one or more (N, H, W), of the same images; where sizes differ, each is pooled to
            :func:`common_size` before normalisation.

    Returns:
        (N, H, W) in at least float32. A single map is returned as it is.

    Example:
        >>> mean_map([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])])
        tensor([[[0.3000, 0.9000]]])
    """
    if len(maps) == 1:
        return maps[0]
    size = common_size(*(map_.shape[-2:] for map_ in maps))
    vectors = [normalize(resize(map_, size)) for map_ in maps]
    return torch.stack(vectors).mean(dim=0).view(-1, *size)


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in at least float32; float64 stays.

    >>> to_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_features(features: Tensor, kind: str, power: float) -> None:
    """Raises a ValueError or TypeError unless features are (N, C, H, W) and F is known."""
    if features.dim() != 4:
        raise ValueError(f"features must be (N, C, H, W), got {_axes(features)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if kind not in ("sum", "max"):
        raise ValueError(f'kind must be "sum" or "max", got {kind!r}')
    if not (power > 0 and math.isfinite(power)):
        raise ValueError(f"power must be a finite number above 0, got {power}")


def _axes(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}"


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Each sample's largest |value|, shaped to divide by; 1 where a sample is all zero."""
    axes = tuple(range(1, tensor.dim()))
    values = tensor.detach()
    largest = torch.maximum(values.amax(axes, keepdim=True), -values.amin(axes, keepdim=True))
    return torch.where(largest > 0, largest, 1)


def _absolute_power(values: Tensor, power: float) -> Tensor:
    """|v|^p, with a gradient of zero at v = 0 for every p."""
    if power == 2:
        return values.square()
    magnitude = values.abs()
    if power == 1:
        return magnitude
    if power >= 2:
        return magnitude.pow(power)
    # Below 2 the derivative (the second one, above 1) is infinite at 0: take zeros out first.
    zero = magnitude == 0
    return magnitude.masked_fill(zero, 1).pow(power).masked_fill(zero, 0)
