"""Attention maps of activations: pure functions from feature maps to where a network looks.

A layer's features A have shape (N, C, *S), with one to three spatial axes S: (L,) of a signal,
(H, W) of an image, (D, H, W) of a volume or video. A mapping F takes the absolute value of an
activation as the importance of its neuron and reduces the channels (Zagoruyko & Komodakis,
ICLR 2017, section 3.1):

    F_sum^p(A) = sum_c |A_c|^p        F_max^p(A) = max_c |A_c|^p        p > 0

Everything here is computed in at least float32, whatever the dtype of the features and
whatever the state of autocast: float16 and bfloat16 are converted, float64 stays.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from attention_transfer.functional.kernels import (
    MapKind,
    absolute_power,
    check_features,
    features_gradient,
    largest_magnitude,
    over_scale,
    scaled_map,
    shape_of,
    to_float32,
)

__all__ = [
    "MapKind",
    "activation_map",
    "common_size",
    "mean_map",
    "normalize",
    "normalized_map",
    "resize",
    "to_float32",
]


def activation_map(features: Tensor, kind: MapKind = "sum", power: float = 2.0) -> Tensor:
    r"""Return the attention map F of a layer's features, exactly as in the paper.

    .. math:: F_{sum}^p(A) = \sum_c |A_c|^p \qquad F_{max}^p(A) = \max_c |A_c|^p

    Args:
        features: (N, C, H, W), or (N, C, L) or (N, C, D, H, W); any floating dtype.
        kind: ``"sum"`` spreads over the image, ``"max"`` keeps the most active channel.
        power: p > 0, real. A larger p gives more weight to the most active channels.

    Returns:
        (N, H, W), or (N, L) or (N, D, H, W): non-negative, in at least float32. It can be
        differentiated any number of times; where p < 1, the gradient at an activation of zero is
        defined as zero.

    Raises:
        ValueError: features have no channels or no spatial axes, p is not positive, or the kind
            is unknown.
        TypeError: features are not of a floating dtype.

    Example:
        >>> features = torch.tensor([[[[1.0, -2.0]], [[-3.0, 4.0]]]])  # N=1, C=2, H=1, W=2
        >>> activation_map(features, kind="sum", power=2)
        tensor([[[10., 20.]]])
        >>> activation_map(features, kind="max", power=1)
        tensor([[[3., 4.]]])
        >>> activation_map(torch.tensor([[[1.0, 0.0, -2.0]]]))  # a signal: N=1, C=1, L=3
        tensor([[1., 0., 4.]])
    """
    check_features(features, kind, power)
    values = to_float32(features)
    if kind == "max":
        return absolute_power(values.abs().amax(dim=1), power)
    return absolute_power(values, power).sum(dim=1)


def normalize(maps: Tensor) -> Tensor:
    r"""Return attention maps as unit vectors, Q / ||Q||_2 with Q = vec(F(A)) (paper, Eq. 2).

    Args:
        maps: (N, H, W), or (N, L) or (N, D, H, W); any finite values: each map is divided by its
            own largest magnitude first, so neither 1e30 nor 1e-30 overflows or vanishes.

    Returns:
        (N, H*W) in at least float32, each row of l2 norm 1. An all-zero map gives a row of
        zeros, with a gradient of zero.

    Raises:
        ValueError: maps have no spatial axis, or more than three.

    Example:
        >>> normalize(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not 2 <= maps.dim() <= 4:
        raise ValueError(f"maps must be (N, H, W), (N, L) or (N, D, H, W), got {shape_of(maps)}")
    vectors = to_float32(maps).flatten(1)
    vectors = over_scale(vectors, largest_magnitude(vectors), maps.dtype)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # Two wheres: the first keeps 1/0 out of the backward pass, the second gives zero maps zero.
    inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
    return vectors * inverse


def normalized_map(features: Tensor, kind: MapKind = "sum", power: float = 2.0) -> Tensor:
    """Return the normalized attention map of features: ``normalize(activation_map(features))``.

    It is right for every finite input (1e-30 as well as 1e30), because a normalized map does not
    depend on the scale of the features: each image is divided by its own largest magnitude first.
    The gradient is written by hand, in the features' dtype and memory format; it has no second
    derivative (:func:`activation_map` has).

    Args:
        features: (N, C, H, W), or (N, C, L) or (N, C, D, H, W); any floating dtype.
        kind: ``"sum"`` or ``"max"`` over channels.
        power: p > 0, real.

    Returns:
        (N, H*W) in at least float32; rows of unit l2 norm, or zeros for all-zero features.

    Raises:
        ValueError, TypeError: as :func:`activation_map`.

    Example:
        >>> normalized_map(torch.tensor([[[[1e30, 0.0]]]]))
        tensor([[1., 0.]])
    """
    scaled: Tensor = _ScaledMap.apply(features, kind, power)
    return normalize(scaled)


class _ScaledMap(torch.autograd.Function):
    """F(A / s) with a constant divisor s for each image.

    Autograd's backward pass would keep several float32 copies of the features and lose their
    memory format; this one keeps the features and one number for each image.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, kind: MapKind, power: float) -> Tensor:
        maps, divisors = scaled_map(features, kind, power)
        ctx.save_for_backward(features, divisors)
        ctx.kind, ctx.power = kind, power  # type: ignore[attr-defined]
        return maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, divisors = ctx.saved_tensors
        return features_gradient(features, divisors, gradient, ctx.kind, ctx.power), None, None


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps, average-pooled to a size no larger than their own on any axis.

    Args:
        maps: (N, H, W), or (N, L) or (N, D, H, W).
        size: one length for each spatial axis.

    Returns:
        (N, *size), each position the mean of the positions that fall on it (adaptive average
        pooling).

    Raises:
        ValueError: the maps have another number of spatial axes.

    Example:
        >>> resize(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]), (1, 2))
        tensor([[[3., 5.]]])
    """
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return pool(maps.unsqueeze(1), size).squeeze(1)


def pool(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return features (N, C, *S) average-pooled to a size, axis by axis.

    >>> pool(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), (2,))
    tensor([[[2., 6.]]])
    """
    if features.dim() - 2 != len(size):
        raise ValueError(
            f"cannot pool {features.dim() - 2} spatial axes to the size {tuple(size)}; both "
            "networks' maps must have the same number of axes"
        )
    if len(size) == 1:
        return functional.adaptive_avg_pool1d(features, size[0])
    if len(size) == 2:
        return functional.adaptive_avg_pool2d(features, (size[0], size[1]))
    return functional.adaptive_avg_pool3d(features, (size[0], size[1], size[2]))


def common_size(*sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the size at which maps are compared: axis by axis, the smallest.

    Raises:
        ValueError: the sizes have different numbers of axes.

    Example:
        >>> common_size((32, 8), (16, 16))
        (16, 8)
    """
    if len({len(size) for size in sizes}) > 1:
        raise ValueError(
            f"maps of sizes {' and '.join(str(tuple(size)) for size in sizes)} have different "
            "numbers of spatial axes, so they cannot be compared"
        )
    return tuple(map(min, zip(*sizes, strict=True)))


def mean_map(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean of several networks' normalized maps.

    Args:
        maps: one or more (N, H, W), (N, L) or (N, D, H, W), of the same images; where sizes
            differ, each is pooled to :func:`common_size` before normalization.

    Returns:
        (N, *size) in at least float32. A single map is returned as it is.

    Example:
        >>> mean_map([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])])
        tensor([[[0.3000, 0.9000]]])
    """
    if len(maps) == 1:
        return maps[0]
    size = common_size(*(map_.shape[1:] for map_ in maps))
    vectors = [normalize(resize(map_, size)) for map_ in maps]
    return torch.stack(vectors).mean(dim=0).view(-1, *size)
