"""Batch normalisation by the batch's statistics, per channel, with x^ = (x - mean) r,
r = 1 / sqrt(var + eps) and means over the batch and positions:

    y = w x^ + b
    dx = w r P(g)               for g, the gradient at y, and P(v) = v - mean(v) - x^ mean(v x^)

The gradient of <u, dx>, with q = mean(u g) - mean(u) mean(g) - mean(u x^) mean(g x^):

    in g    w r P(u)
    in w    r q M               for M values in a channel
    in x    -w r^2 (q x^ + mean(g x^) P(u) + mean(u x^) P(g))

PyTorch's own second derivative is a chain of dozens of passes over memory. Here it is two
compiled passes, or six of PyTorch's kernels where nothing can be compiled.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from attention_transfer.double_backward.first_pass import FirstPass
from attention_transfer.errors import first_line
from attention_transfer.functional.maps import to_float32

__all__ = ["BatchNorm", "BatchNormCall"]

_log = logging.getLogger(__name__)

_LARGE = 2**19
"""Number of elements from which fusing pays for the compiler's start."""

Kernel = Callable[..., tuple[Tensor, ...]]

_WIDTH = 1024
"""Elements of a row over which per-channel coefficients repeat, to fill vector units."""


class BatchNormCall(NamedTuple):
    """The arguments of ``torch.nn.functional.batch_norm``."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: Any) -> "BatchNormCall | None":
        """Return the arguments of a function's call; None of another function than batch norm.

        Some networks call ``torch.batch_norm`` themselves, whose order of arguments is another.
        """
        if func is functional.batch_norm:
            return cls(*args, **(kwargs or {}))
        if func is torch.batch_norm:
            features, weight, bias, mean, var, training, momentum, eps, *_ = args
            return cls(features, mean, var, weight, bias, training, momentum, eps)
        return None

    def by_pytorch(self) -> Tensor:
        """Return what PyTorch computes."""
        return functional.batch_norm(*self)


class BatchNorm(Function):
    """batch_norm by the batch's statistics; its input gradient is :class:`BatchNormGradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        first_pass: FirstPass,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Any, ...],
    ) -> Tensor:
        output: Tensor
        output, mean, inverse_std = torch.native_batch_norm(features, weight, bias, *running)
        ctx.save_for_backward(features, weight, mean, inverse_std)
        ctx.first_pass = first_pass
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            ctx.first_pass.check()
            dx = BatchNormGradient.apply(gradient, *ctx.saved_tensors)
            return None, dx, None, None, None
        dx, in_weight, in_bias = _projected(gradient, *ctx.saved_tensors)
        _, _, need_weight, need_bias, _ = ctx.needs_input_grad
        return None, dx, in_weight if need_weight else None, in_bias if need_bias else None, None


class BatchNormGradient(Function):
    """The gradient dx of batch_norm at its input; its derivative is the module's formula."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        features: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
    ) -> Tensor:
        dx, product, total = _projected(gradient, features, weight, mean, inverse_std)
        ctx.kernels = _compiled() if gradient.numel() >= _LARGE else None
        kept = dx if ctx.kernels is None else None
        ctx.save_for_backward(gradient, kept, product, total, features, weight, mean, inverse_std)
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        given = _Given(u, *ctx.saved_tensors)
        derivative = _in_passes(given) if ctx.kernels is None else _fused(given, *ctx.kernels)
        in_gradient, in_input, in_weight = derivative
        return in_gradient, in_input, in_weight if ctx.needs_input_grad[2] else None, None, None


def _projected(
    gradient: Tensor, features: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """w r P(g), S(g x^) and S(g), by PyTorch's kernel of batch normalisation's first backward."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        gradient, features, weight, None, None, mean, inverse_std, True, 0.0, [True, True, True]
    )
    return result


class _Given(NamedTuple):
    """The tensors in the second derivative of batch normalisation, in the formula's names."""

    u: Tensor
    g: Tensor
    dx: Tensor | None
    """Kept for the uncompiled passes; the compiled ones recompute it."""
    sum_gx: Tensor
    sum_g: Tensor
    x: Tensor
    w: Tensor | None
    mean: Tensor
    r: Tensor


def _in_passes(given: _Given) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the formula in single passes, P(u) by PyTorch's kernel of the first backward."""
    u, g, dx, sum_gx, sum_g, x, w, mean, r = given
    assert dx is not None
    in_g, sum_ux, sum_u = _projected(u, x, w, mean, r)
    rows = _Rows(x)
    count = rows.count
    q = rows.mean(rows.view(u) * rows.view(g)) - (sum_g * sum_u + sum_gx * sum_ux) / count**2
    slope = -(r if w is None else w * r) * r * r * q
    in_x = torch.addcmul(rows.spread(-slope * mean), rows.view(x), rows.spread(slope))
    in_x.addcmul_(rows.view(in_g), rows.spread(-r * sum_gx / count))
    in_x.addcmul_(rows.view(dx), rows.spread(-r * sum_ux / count))
    return in_g, rows.restore(in_x), r * q * count


def _fused(given: _Given, means: Kernel, derivatives: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the formula in two compiled passes."""
    u, g, _, sum_gx, sum_g, x, w, mean, r = given
    shape, count = x.shape, x.numel() // x.shape[1]
    u, g, x = (tensor.detach().reshape(*shape[:2], -1) for tensor in (u, g, x))
    of_u, of_ux, of_ug = means(u, g, x, mean, r)
    of_g, of_gx = sum_g / count, sum_gx / count
    q = of_ug - of_u * of_g - of_ux * of_gx
    scale = r if w is None else w * r
    in_g, in_x = derivatives(u, g, x, mean, r, scale, of_u, of_ux, of_g, of_gx, q)
    return in_g.reshape(shape), in_x.reshape(shape), r * q * count


def _means(u: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    """Return the channel means of u, u x^ and u g; tensors are (N, C, S)."""
    u, normal = to_float32(u), (to_float32(x) - mean[:, None]) * r[:, None]
    return tuple(value.mean((0, 2)) for value in (u, u * normal, u * to_float32(g)))


def _derivatives(
    u: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor, scale: Tensor, *means: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients in g and in x, (N, C, S)."""
    of_u, of_ux, of_g, of_gx, q = (value[:, None] for value in means)
    normal = (to_float32(x) - mean[:, None]) * r[:, None]
    projected_u = to_float32(u) - of_u - normal * of_ux
    projected_g = to_float32(g) - of_g - normal * of_gx
    in_x = q * normal + of_gx * projected_u + of_ux * projected_g
    in_g = scale[:, None] * projected_u
    return in_g.to(g.dtype), (-scale * r)[:, None].mul(in_x).to(x.dtype)


@functools.cache
def _compiled() -> tuple[Kernel, Kernel] | None:
    """Compile both kernels for any sizes; None, logged once, where no compiler works."""
    try:
        kernels = [torch.compile(kernel, dynamic=True) for kernel in (_means, _derivatives)]
        channels = torch.ones(3)
        kernels[0](*torch.ones(3, 2, 3, 5), channels, channels)
    except Exception as error:
        reason = first_line(error)
        _log.info("batch norm's second derivative runs uncompiled: %s", reason)
        return None
    return kernels[0], kernels[1]


class _Rows:
    """Views in which each channel's arithmetic fills vector units, whatever the memory format.

    Channels-last memory is (rows, channels): with few channels, an operation between it and one
    number a channel would work on short runs. Several of its rows make one here.
    """

    def __init__(self, like: Tensor) -> None:
        self.shape, self.dtype = like.shape, like.dtype
        self.channels = like.shape[1]
        self.count = like.numel() // self.channels
        self.channels_last = like.movedim(1, -1).is_contiguous()
        self.repeats = math.gcd(self.count, max(1, _WIDTH // self.channels))

    def view(self, tensor: Tensor) -> Tensor:
        """Return the tensor as rows (copied if its memory format is another)."""
        if self.channels_last:
            return tensor.movedim(1, -1).reshape(-1, self.repeats * self.channels)
        return tensor.reshape(*self.shape[:2], -1)

    def restore(self, rows: Tensor) -> Tensor:
        """Return rows in the shape and memory format they were viewed from."""
        if self.channels_last:
            return rows.view(self.shape[0], *self.shape[2:], self.channels).movedim(-1, 1)
        return rows.view(self.shape)

    def spread(self, values: Tensor) -> Tensor:
        """Return one value for each channel (C,), shaped to broadcast against rows."""
        values = values.to(self.dtype)
        return values.repeat(self.repeats) if self.channels_last else values[:, None]

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean of each channel, (C,)."""
        if self.channels_last:
            total = to_float32(rows.sum(0)).view(self.repeats, self.channels).sum(0)
        else:
            total = to_float32(rows.sum((0, 2)))
        return total / self.count
