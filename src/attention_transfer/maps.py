"""Attention maps of activations: pure functions from feature maps to where a network looks.

A layer's features A have shape (N, C, H, W). A mapping F takes the absolute value of an
activation as the importance of its neuron and reduces the channels (Zagoruyko & Komodakis,
ICLR 2017, section 3.1):

    F_sum^p(A) = sum_c |A_c|^p        F_max^p(A) = max_c |A_c|^p        p > 0

Everything here is computed in at least float32, whatever the dtype of the features and
whatever the state of autocast: float16 and bfloat16 are promoted, float64 stays.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from attention_transfer.errors import InputError

__all__ = [
    "MapKind",
    "activation_map",
    "common_size",
    "features_gradient",
    "mean_map",
    "moderate",
    "normalize",
    "normalized_map",
    "promoted",
    "resize",
    "scale_free_map",
    "scaled_map",
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
    _check(features, kind, power)
    magnitude = promoted(features)
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
    vectors = promoted(maps).flatten(1)
    vectors = vectors / _largest_magnitude(vectors)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # Two wheres: the first keeps 1/0 out of the backward pass, the second gives zero maps zero.
    inverse = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
    return vectors * inverse


def scale_free_map(features: Tensor, kind: MapKind = "sum", power: float = 2.0) -> Tensor:
    """F(A / s) with a divisor s per image that makes it finite for every finite A: equal to F(A)
    up to a positive factor per image, which normalisation removes.

    s is the largest magnitude of the image's features, or (for F_sum^2, where one pass gives it)
    the largest norm over channels. Shapes, errors and dtypes as in :func:`activation_map`. The
    divisor is a constant to autograd: what follows must not depend on the map's scale. Only the
    features and one number per image are kept for the backward pass, whose gradient has the
    features' dtype and memory format; there is no second derivative.

    Example:
        >>> scale_free_map(torch.full((1, 1, 1, 2), 1e30))
        tensor([[[1., 1.]]])
    """
    result: Tensor = _ScaleFreeMap.apply(features, kind, power)
    return result


def normalized_map(features: Tensor, kind: MapKind = "sum", power: float = 2.0) -> Tensor:
    """The normalised attention map of features: ``normalize(activation_map(features))``, but
    right for every finite input (1e-30 as well as 1e30), because a normalised map does not depend
    on the scale of the features.

    Args:
        features: (N, C, H, W), any floating dtype.
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
    return normalize(scale_free_map(features, kind, power))


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


def _check(features: Tensor, kind: str, power: float) -> None:
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


def promoted(tensor: Tensor) -> Tensor:
    """The tensor in at least float32; float64 stays.

    >>> promoted(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _largest_magnitude(tensor: Tensor) -> Tensor:
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


def _power_slope(values: Tensor, power: float) -> Tensor:
    """(1/p) d|v|^p/dv = |v|^(p-1) sign(v), and 0 at v = 0; overwrites v."""
    if power == 2:
        return values
    if power == 1:
        return values.sign_()
    slope = values.abs().pow_(power - 1).mul_(values.sign())
    return slope if power >= 1 else slope.masked_fill_(values == 0, 0)


def scaled_map(
    features: Tensor, kind: MapKind = "sum", power: float = 2.0
) -> tuple[Tensor, Tensor]:
    """F(A / s), as in :func:`scale_free_map` but outside of autograd, and the divisors s.

    Returns:
        maps (N, H, W) and divisors (N, 1, 1, 1), in at least float32.
    """
    _check(features, kind, power)
    squares = None
    if kind == "sum" and power == 2 and not torch.compiler.is_compiling():
        squares = _scaled_square_sum(features)
    return squares or _scaled_map(features, kind, power)


def features_gradient(
    features: Tensor, divisors: Tensor, upstream: Tensor, kind: MapKind, power: float
) -> Tensor:
    """The gradient at the features of sum(upstream * F(A / s)), s a constant: one pass over them.

    Args:
        features: (N, C, H, W).
        divisors: s, (N, 1, 1, 1), of :func:`scaled_map`.
        upstream: (N, H, W), in the divisors' dtype.
        kind: of F.
        power: of F.

    Returns:
        (N, C, H, W) in the features' dtype and memory format. Differentiating it raises an
        InputError.
    """
    with torch.no_grad():
        gradient = _features_gradient(features, divisors, upstream, kind, power)
    twice = torch.is_grad_enabled() and features.requires_grad
    return _Gradient.apply(gradient, features) if twice else gradient


def _features_gradient(
    features: Tensor, divisors: Tensor, upstream: Tensor, kind: MapKind, power: float
) -> Tensor:
    result = torch.empty_like(features)
    slope = upstream.unsqueeze(1)
    plain = kind == "sum" and power == 2 and features.dtype != torch.float16
    if plain and moderate(divisors):
        factors = 2 / divisors.square()
        for images, above, factor, below in _in_parts(
            features, slope, factors, result, elements=2**20
        ):
            # bfloat16 has float32's range: the slope is rounded as the product is.
            torch.mul(images, (above * factor).to(images.dtype), out=below)
        return result
    factors = power / divisors
    for images, above, factor, divisor, below in _in_parts(
        features, slope, factors, divisors, result
    ):
        values = images.to(divisor.dtype, copy=True).div_(divisor)
        above = above * factor
        if kind == "max":
            winners = values.abs() == values.abs().amax(dim=1, keepdim=True)
            # Ties share the gradient, as in torch.amax.
            above = above * winners / winners.sum(dim=1, keepdim=True)
        below.copy_(_power_slope(values, power).mul_(above))
    return result


def _scaled_square_sum(features: Tensor) -> tuple[Tensor, Tensor] | None:
    """F_sum^2 with each image divided by the largest norm over channels, and that divisor.

    One pass over the features. None if squares could overflow or vanish in float32.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    norms = features.new_empty((len(features), *features.shape[2:]), dtype=dtype)
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    for images, norm in _in_parts(features, norms):
        if channels_last:
            torch.linalg.vector_norm(images.to(dtype), dim=1, out=norm)
        else:  # over channels far apart in memory, PyTorch's norm is fifty times slower than this
            torch.sum(images.to(dtype).square(), dim=1, out=norm).sqrt_()
    divisors = norms.amax(dim=(1, 2), keepdim=True)
    if not moderate(divisors):
        return None
    return norms.div_(divisors).square_(), divisors.unsqueeze(1)


def moderate(magnitudes: Tensor) -> bool:
    """Whether squares of what has these magnitudes neither overflow nor vanish in float32.

    >>> moderate(torch.tensor([1.0, 1e20]))
    False
    """
    least, most = magnitudes.aminmax()
    return float(least) > 1e-15 and float(most) < 1e15


def _scaled_map(features: Tensor, kind: MapKind, power: float) -> tuple[Tensor, Tensor]:
    """F with each image divided by its largest magnitude, and that divisor (N, 1, 1, 1)."""
    count, _, height, width = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    maps = features.new_empty((count, height, width), dtype=dtype)
    divisors = features.new_empty((count, 1, 1, 1), dtype=dtype)
    for images, map_, divisor in _in_parts(features, maps, divisors):
        values = images.to(dtype, copy=True)
        values.div_(divisor.copy_(_largest_magnitude(values)))
        map_.copy_(activation_map(values, kind, power))
    return maps, divisors


class _ScaleFreeMap(torch.autograd.Function):
    """F(A / s), with the backward pass written by hand: autograd's would keep several
    float32 copies of the features, and lose their memory format.
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


class _Gradient(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, features: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise InputError(
            "this attention map has no second derivative, got a backward pass through its "
            "gradient; use maps.activation_map and losses.attention_transfer, which have any number"
        )


def _in_parts(
    features: Tensor, *others: Tensor, elements: int = 2**18
) -> Iterator[tuple[Tensor, ...]]:
    """Features and what belongs to them, split along N on a CPU, so that what is computed of a
    part in float32 stays in its caches, and the memory it takes is little.
    """
    images = len(features)
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        images = elements // max(1, features[:1].numel())
    return zip(
        *(torch.split(tensor, max(1, images)) for tensor in (features, *others)), strict=True
    )
