"""The passes over features that attention maps and their gradients are made of.

Outside of autograd, in as few passes as can be, and right for features of every finite scale: F is
taken of A / s, where the divisor s of each image keeps every power finite. That is F(A) up to a
positive factor for each image, which normalization removes. The modules ``maps`` and ``fused`` are
built on these, so that both give the same numbers.
"""

import logging
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from attention_transfer.errors import InputError, first_line

__all__ = [
    "MapKind",
    "absolute_power",
    "check_features",
    "features_gradient",
    "in_one_dtype",
    "is_moderate",
    "largest_magnitude",
    "over_scale",
    "power_of_two",
    "scaled_map",
    "shape_of",
    "to_float32",
]

_log = logging.getLogger(__name__)

MapKind = Literal["sum", "max"]


def to_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32; float64 stays.

    >>> to_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_one_dtype(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors in the wider one's dtype; one in float64 leaves float64.

    PyTorch 2.8 and 2.9 compute no gradient of ``mse_loss`` of two dtypes.
    """
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(dtype), teacher.to(dtype)


def check_features(features: Tensor, kind: str, power: float) -> None:
    """Raise a ValueError or TypeError unless features are (N, C, *S) and F is known."""
    if not 3 <= features.dim() <= 5:
        raise ValueError(
            f"features must be (N, C, H, W), (N, C, L) or (N, C, D, H, W), got {shape_of(features)}"
        )
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if kind not in ("sum", "max"):
        raise ValueError(f'kind must be "sum" or "max", got {kind!r}')
    if not (power > 0 and math.isfinite(power)):
        raise ValueError(f"power must be a finite number above 0, got {power}")


def shape_of(tensor: Tensor) -> str:
    """Describe a tensor's shape for an error message."""
    return f"a tensor of shape {tuple(tensor.shape)}"


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Return each sample's largest |value|, shaped to divide by; 1 where a sample is all zero."""
    axes = tuple(range(1, tensor.dim()))
    values = tensor.detach()
    largest = torch.maximum(values.amax(axes, keepdim=True), -values.amin(axes, keepdim=True))
    return torch.where(largest > 0, largest, 1)


def power_of_two(magnitudes: Tensor) -> Tensor:
    """Return the powers of two at or below magnitudes above 0, division by which rounds nothing.

    >>> power_of_two(torch.tensor([1.0, 7.0]))
    tensor([1., 4.])
    """
    return magnitudes.log2().floor().exp2()


def over_scale(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values / scale, for a constant scale, with a gradient that ``dtype`` can hold.

    The gradient is the upstream one over the scale, of which 1 / 1e-45 would overflow: a scale
    below the smallest normal number of the dtype counts as that. Features so small have lost most
    of their digits.

    Args:
        values: in at least float32.
        scale: positive, shaped to divide by.
        dtype: of the tensor that the values were converted from.

    Example:
        >>> values = torch.tensor([1e-44], requires_grad=True)
        >>> over_scale(values, values.detach(), torch.float32).backward()
        >>> bool(values.grad.isfinite())
        True
    """
    result: Tensor = _OverScale.apply(values, scale, torch.finfo(dtype).tiny)
    return result


class _OverScale(torch.autograd.Function):
    """Division by a constant whose gradient divides by no less than ``least``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.least = least
        return values / scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradient / scale.clamp(min=ctx.least), None, None


def absolute_power(values: Tensor, power: float) -> Tensor:
    """Return |v|^p, with a gradient of zero at v = 0 for every p.

    >>> absolute_power(torch.tensor([-3.0, 0.0]), 2)
    tensor([9., 0.])
    """
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


def is_moderate(magnitudes: Tensor) -> bool:
    """Return whether squares of these magnitudes neither overflow nor vanish in float32.

    >>> is_moderate(torch.tensor([1.0, 1e20]))
    False
    """
    least, most = magnitudes.aminmax()
    return float(least) > 1e-15 and float(most) < 1e15


def scaled_map(
    features: Tensor, kind: MapKind = "sum", power: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Return F(A / s) and the divisors s, as constants: outside of autograd.

    s is the largest magnitude of an image's features or, for F_sum^2, where the same pass gives
    it, the largest norm over channels.

    Args:
        features: (N, C, *S), one to three spatial axes.
        kind: ``"sum"`` or ``"max"`` over channels.
        power: p > 0, real.

    Returns:
        Maps (N, *S) and divisors (N, 1, ...) of the features' number of axes, in at least
        float32.

    Raises:
        ValueError, TypeError: as :func:`attention_transfer.functional.maps.activation_map`.

    Example:
        >>> scaled_map(torch.full((1, 1, 1, 2), 1e30))[0]
        tensor([[[1., 1.]]])
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
    """Return the gradient at the features of scale * sum(upstream * F(A / s)), s a constant.

    Args:
        features: (N, C, *S).
        divisors: s, as :func:`scaled_map` gave them.
        upstream: (N, *S), in the divisors' dtype.
        kind: of F.
        power: of F.
        scale: a number, or a scalar tensor.

    Returns:
        (N, C, *S) in the features' dtype and memory format, computed in one pass. Differentiating
        it raises an InputError.
    """
    gradient_of = FUSED_GRADIENT if features.is_cuda else _features_gradient
    with torch.no_grad():
        gradient = gradient_of(features, divisors, upstream, kind, power, scale)
    twice = torch.is_grad_enabled() and features.requires_grad
    return _Gradient.apply(gradient, features) if twice else gradient


def _scaled_square_sum(features: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return F_sum^2 and the divisors in one pass; None if squares could overflow or vanish."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    norms = features.new_empty((len(features), *features.shape[2:]), dtype=dtype)
    channels_last = _is_channels_last(features)
    for images, norm in _in_parts(features, norms):
        if channels_last:
            torch.linalg.vector_norm(images.to(dtype), dim=1, out=norm)
        else:  # over channels far apart in memory, PyTorch's norm is fifty times slower than this
            torch.sum(images.to(dtype).square(), dim=1, out=norm).sqrt_()
    divisors = norms.amax(dim=tuple(range(1, norms.dim())), keepdim=True)
    if not is_moderate(divisors):
        return None
    return norms.div_(divisors).square_(), divisors.unsqueeze(1)


def _scaled_map(features: Tensor, kind: MapKind, power: float) -> tuple[Tensor, Tensor]:
    """Return F with each image divided by its largest magnitude, and those divisors."""
    count, _, *size = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    maps = features.new_empty((count, *size), dtype=dtype)
    divisors = features.new_empty((count, *(1,) * (features.dim() - 1)), dtype=dtype)
    for images, map_, divisor in _in_parts(features, maps, divisors):
        values = images.to(dtype, copy=True)
        values.div_(divisor.copy_(largest_magnitude(values)))
        if kind == "max":
            map_.copy_(absolute_power(values.abs().amax(dim=1), power))
        else:
            map_.copy_(absolute_power(values, power).sum(dim=1))
    return maps, divisors


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
    if plain and not torch.compiler.is_compiling() and is_moderate(divisors):
        factors = 2 * scale / divisors.square()
        for images, above, factor, below in _in_parts(
            features, slope, factors, result, elements=2**20
        ):
            # bfloat16 has float32's range: the slope is rounded as the product is.
            _times_positions(images, (above * factor).to(images.dtype), below)
        return result
    # Below that, as in over_scale, the gradient would be out of the dtype's range.
    factors = power * scale / divisors.clamp(min=power * torch.finfo(features.dtype).tiny)
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
    """Write features (n, C, *S) times a factor for each position (n, 1, *S) to ``out``.

    In channels_last, where the channels of a position are fewer than two vector registers hold,
    PyTorch multiplies number by number. Repeating each factor beside the features first, eight
    bytes at a time, takes a third of the time.
    """
    channels, size = features.shape[1], features.element_size()
    registers = 128 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 64
    short_rows = channels * size < registers and channels * size % 8 == 0
    if features.dim() != 4 or not _is_channels_last(features) or not short_rows:
        torch.mul(features, factors, out=out)
        return
    rows = factors.permute(0, 2, 3, 1).reshape(-1, 1)
    eight_bytes = rows.expand(-1, 8 // size).contiguous().view(torch.int64)
    beside = eight_bytes.expand(-1, channels * size // 8).contiguous().view(features.dtype)
    n, _, height, width = features.shape
    torch.mul(features, beside.view(n, height, width, channels).permute(0, 3, 1, 2), out=out)


def _is_channels_last(features: Tensor) -> bool:
    """Return whether the channels of each position lie side by side in memory."""
    if features.dim() == 3:
        return features.transpose(1, 2).is_contiguous()
    channels_last = torch.channels_last if features.dim() == 4 else torch.channels_last_3d
    return features.is_contiguous(memory_format=channels_last)


def _power_slope(values: Tensor, power: float) -> Tensor:
    """Return (1/p) d|v|^p/dv = |v|^(p-1) sign(v), and 0 at v = 0; may overwrite v."""
    if power == 2:
        return values
    if power == 1:
        return values.sign_()
    slope = values.abs().pow_(power - 1).mul_(values.sign())
    return slope if power >= 1 else slope.masked_fill_(values == 0, 0)


def _in_parts(
    features: Tensor, *others: Tensor, elements: int = 2**18
) -> Iterator[tuple[Tensor, ...]]:
    """Split features and what belongs to them along N on a CPU.

    What is computed of a part in float32 then stays in the processor's caches and takes little
    memory.
    """
    images = len(features)
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        images = elements // max(1, features[:1].numel())
    return zip(
        *(torch.split(tensor, max(1, images)) for tensor in (features, *others)), strict=True
    )


class _Gradient(torch.autograd.Function):
    """A gradient that raises a clear error when it is differentiated again."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, features: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise InputError(
            "this attention map has no second derivative, got a backward pass through its "
            "gradient; use maps.activation_map and losses.attention_transfer, which can be "
            "differentiated any number of times"
        )


class Kernel:
    """A function of tensors as one compiled kernel, or as it is from the first failure on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._failed = False

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result."""
        if not self._failed and not torch.compiler.is_compiling():
            try:
                return self._compiled(*arguments)
            except Exception as error:
                reason = first_line(error)
                _log.info("%s runs uncompiled: %s", self._function.__name__, reason)
                self._failed = True
        return self._function(*arguments)

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        """Compile at the first call only: importing the compiler takes seconds."""
        return torch.compile(self._function, dynamic=True)


FUSED_MAP, FUSED_GRADIENT = Kernel(_scaled_map), Kernel(_features_gradient)
"""For GPUs, where single operations would each make a pass over the features."""
