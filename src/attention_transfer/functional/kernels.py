"""Maps that are right for features of every finite scale, in one pass, with their gradient."""

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from attention_transfer.errors import InputError
from attention_transfer.functional.maps import (
    MapKind,
    activation_map,
    check_features,
    largest_magnitude,
    normalize,
)

_log = logging.getLogger(__name__)

__all__ = ["features_gradient", "moderate", "normalized_map", "scale_free_map", "scaled_map"]


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


def scaled_map(
    features: Tensor, kind: MapKind = "sum", power: float = 2.0
) -> tuple[Tensor, Tensor]:
    """F(A / s), as in :func:`scale_free_map` but outside of autograd, and the divisors s.

    Returns:
        maps (N, H, W) and divisors (N, 1, 1, 1), in at least float32.
    """
    check_features(features, kind, power)
    if features.is_cuda:
        maps, divisors = FUSED_MAP(features, kind, power)
        return maps, divisors
    squares = None
    if kind == "sum" and power == 2 and not torch.compiler.is_compiling():
        squares = _scaled_square_sum(features)
    return squares or _scaled_map(features, kind, power)


def features_gradient(
    features: Tensor,
    divisors: Tensor,
    upstream: Tensor,
    kind: MapKind,
    power: float,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """The gradient at the features of scale * sum(upstream * F(A / s)), s a constant: one pass over
    them.

    Args:
        features: (N, C, H, W).
        divisors: s, (N, 1, 1, 1), of :func:`scaled_map`.
        upstream: (N, H, W), in the divisors' dtype.
        kind: of F.
        power: of F.
        scale: a number.

    Returns:
        (N, C, H, W) in the features' dtype and memory format. Differentiating it raises an
        InputError.
    """
    gradient_of = FUSED_GRADIENT if features.is_cuda else _features_gradient
    with torch.no_grad():
        gradient = gradient_of(features, divisors, upstream, kind, power, scale)
    twice = torch.is_grad_enabled() and features.requires_grad
    return _Gradient.apply(gradient, features) if twice else gradient


def _features_gradient(
    features: Tensor,
    divisors: Tensor,
    upstream: Tensor,
    kind: MapKind,
    power: float,
    scale: Tensor | float,
) -> Tensor:
    result = torch.empty_like(features)
    slope = upstream.unsqueeze(1)
    plain = kind == "sum" and power == 2 and features.dtype != torch.float16
    if plain and not torch.compiler.is_compiling() and moderate(divisors):
        factors = 2 * scale / divisors.square()
        for images, above, factor, below in _in_parts(
            features, slope, factors, result, elements=2**20
        ):
            # bfloat16 has float32's range: the slope is rounded as the product is.
            _times_positions(images, (above * factor).to(images.dtype), below)
        return result
    factors = power * scale / divisors
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


def _times_positions(features: Tensor, factors: Tensor, out: Tensor) -> None:
    """Features (n, C, H, W) times a factor for each position (n, 1, H, W).

    In channels_last, where the channels of a position are fewer than two vector registers hold,
    PyTorch multiplies number by number: the factors are laid beside the features first, eight bytes
    at a time, which takes a third of the time.
    """
    channels, size = features.shape[1], features.element_size()
    registers = 128 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 64
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    if not channels_last or channels * size >= registers or channels * size % 8:
        torch.mul(features, factors, out=out)
        return
    rows = factors.permute(0, 2, 3, 1).reshape(-1, 1)
    eight_bytes = rows.expand(-1, 8 // size).contiguous().view(torch.int64)
    beside = eight_bytes.expand(-1, channels * size // 8).contiguous().view(features.dtype)
    n, _, height, width = features.shape
    torch.mul(features, beside.view(n, height, width, channels).permute(0, 3, 1, 2), out=out)


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
        values.div_(divisor.copy_(largest_magnitude(values)))
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


def _power_slope(values: Tensor, power: float) -> Tensor:
    """(1/p) d|v|^p/dv = |v|^(p-1) sign(v), and 0 at v = 0; overwrites v."""
    if power == 2:
        return values
    if power == 1:
        return values.sign_()
    slope = values.abs().pow_(power - 1).mul_(values.sign())
    return slope if power >= 1 else slope.masked_fill_(values == 0, 0)


class Kernel:
    """A function of tensors as one compiled kernel; as it is, from the first failure on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._failed = False

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        if not self._failed and not torch.compiler.is_compiling():
            try:
                return self._compiled(*arguments)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                _log.info("%s runs uncompiled: %s", self._function.__name__, reason)
                self._failed = True
        return self._function(*arguments)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Made at the first call: importing the compiler takes seconds."""
        return torch.compile(self._function, dynamic=True)


FUSED_MAP, FUSED_GRADIENT = Kernel(_scaled_map), Kernel(_features_gradient)
"""For graphics processors, where single operations would each go over the features."""
