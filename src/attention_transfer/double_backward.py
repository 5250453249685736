"""Differentiating twice, fast: convolution and batch normalisation made for double backward.

Gradient-based attention needs the gradient J = dL/dx of the loss at the input, and then the
gradient of a function of J in the weights. PyTorch does this, but slowly: its second derivative
of batch normalisation is a chain of some forty passes over memory, and that of a convolution
computes the weights' gradient as a convolution with a kernel as large as the image.

Inside ``with DoubleBackward() as double:`` a network's calls of ``conv2d`` and ``batch_norm`` are
answered by the functions below. The network, its modules and its state dict are not touched.

Batch normalisation by the batch's statistics, per channel, with x^ = (x - mean) r,
r = 1 / sqrt(var + eps) and means over the batch and positions:

    y = w x^ + b
    dx = w r P(g)               for g, the gradient at y, and P(v) = v - mean(v) - x^ mean(v x^)

The gradient of <u, dx>, with q = mean(u g) - mean(u) mean(g) - mean(u x^) mean(g x^):

    in g    w r P(u)
    in w    r q M               for M values in a channel
    in x    -w r^2 (q x^ + mean(g x^) P(u) + mean(u x^) P(g))
"""

import functools
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from attention_transfer.maps import promoted

__all__ = ["DoubleBackward"]

_log = logging.getLogger(__name__)

_LARGE = 2**19
"""Elements from which fusing pays for a compiler's start."""

_WIDTH = 1024
"""Elements of a row over which per-channel coefficients are repeated, to fill vector units."""


class DoubleBackward(TorchFunctionMode):
    """A block in which a network is run whose gradient at the input is to be differentiated.

    Besides answering ``conv2d`` and ``batch_norm``, it chooses the attention kernel that has a
    second derivative, and runs compiled parts of the network eagerly: one compiled graph would
    end the second derivative.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(),
        ...                         nn.Linear(8, 2))
        >>> images = torch.rand(4, 1, 4, 4, requires_grad=True)
        >>> with DoubleBackward() as double:
        ...     loss = network(images).square().sum()
        >>> gradient = double.gradient(loss, images)
        >>> gradient.square().sum().backward()
        >>> network[0].weight.grad.shape
        torch.Size([2, 1, 3, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.batch_statistics = False
        """Whether a batch normalisation took its statistics from the batch."""
        self.reading = False
        """True during the first backward pass, in which no gradient of a weight is wanted."""
        self._contexts: list[ExitStack] = []

    def __enter__(self) -> "DoubleBackward":
        stack = ExitStack()
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._contexts.append(stack)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._contexts.pop().close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        if func is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def gradient(self, loss: Tensor, images: Tensor, create_graph: bool = True) -> Tensor:
        """d loss / d images, itself differentiable; the weights' gradients are not computed.

        Args:
            loss: a scalar, of a network run inside this block.
            images: the tensor that requires a gradient.
            create_graph: whether the gradient is to be differentiated.

        Raises:
            RuntimeError: as autograd does, if the loss does not depend on the images.
        """
        self.reading = True
        try:
            (result,) = torch.autograd.grad(loss, images, create_graph=create_graph)
        finally:
            self.reading = False
        return result

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.dim() != 4:
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        tensors: Iterable[Tensor | None] = (input, weight, bias)
        sizes = tuple(_pair(size) for size in (stride, padding, dilation))
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            tensors = (None if given is None else _lowered(given, dtype) for given in tensors)
        with torch.autocast(device, enabled=False):
            result: Tensor = _Convolution.apply(self, *tensors, (*sizes, groups))
        return result

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        running = (running_mean, running_var, training, momentum, eps)
        if not training or input.numel() == input.shape[1]:
            # Fixed statistics: an affine function. One value a channel: PyTorch's own error.
            return functional.batch_norm(
                input, running_mean, running_var, weight, bias, *running[2:]
            )
        self.batch_statistics = True
        result: Tensor = _BatchNorm.apply(self, input, weight, bias, running)
        return result


class _Convolution(Function):
    """conv2d, whose input gradient is :class:`_ConvolutionInputGradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        double: DoubleBackward,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.double, ctx.settings = double, settings
        return torch.conv2d(features, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        _, need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            _only_reading(ctx.double)
            dx = _ConvolutionInputGradient.apply(gradient, weight, features.detach(), ctx.settings)
            return None, dx, None, None, None
        mask = [need_input, need_weight, need_bias]
        return None, *_convolution_backward(gradient, features, weight, ctx.settings, mask), None


class _ConvolutionInputGradient(Function):
    """The gradient of conv2d at its input: linear in the gradient and in the weight."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, weight: Tensor, features: Tensor, settings: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.settings = settings
        dx = _convolution_backward(gradient, features, weight, settings, [True, False, False])[0]
        assert dx is not None
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        need_gradient, need_weight, *_ = ctx.needs_input_grad
        in_gradient = in_weight = None
        if need_gradient:
            in_gradient = torch.conv2d(u, weight, None, *ctx.settings)
        if need_weight:
            mask = [False, True, False]
            in_weight = _convolution_backward(gradient, u, weight, ctx.settings, mask)[1]
        return in_gradient, in_weight, None, None


def _convolution_backward(
    gradient: Tensor, features: Tensor, weight: Tensor, settings: tuple[Any, ...], mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    *sizes, groups = settings
    bias_sizes = [weight.shape[0]] if mask[2] else None
    result: tuple[Tensor | None, Tensor | None, Tensor | None]
    result = torch.ops.aten.convolution_backward(
        gradient, features, weight, bias_sizes, *sizes, False, [0, 0], groups, mask
    )
    return result


class _BatchNorm(Function):
    """batch_norm by the batch's statistics; its input gradient is :class:`_BatchNormGradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        double: DoubleBackward,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Any, ...],
    ) -> Tensor:
        output: Tensor
        output, mean, inverse_std = torch.native_batch_norm(features, weight, bias, *running)
        ctx.save_for_backward(features, weight, mean, inverse_std)
        ctx.double = double
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            _only_reading(ctx.double)
            dx = _BatchNormGradient.apply(gradient, *ctx.saved_tensors)
            return None, dx, None, None, None
        dx, in_weight, in_bias = _projected(gradient, *ctx.saved_tensors)
        _, _, need_weight, need_bias, _ = ctx.needs_input_grad
        return None, dx, in_weight if need_weight else None, in_bias if need_bias else None, None


class _BatchNormGradient(Function):
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
        ctx.save_for_backward(gradient, dx, product, total, features, weight, mean, inverse_std)
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        given = _Given(u, *ctx.saved_tensors)
        fused = _fused(given) if u.numel() >= _LARGE else None
        in_gradient, in_input, in_weight = fused or _in_passes(given)
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
    """What the second derivative of batch normalisation is made from, in the formula's names."""

    u: Tensor
    g: Tensor
    dx: Tensor
    sum_gx: Tensor
    sum_g: Tensor
    x: Tensor
    w: Tensor | None
    mean: Tensor
    r: Tensor


def _in_passes(given: _Given) -> tuple[Tensor, Tensor, Tensor]:
    """The formula in single passes over memory; P(u) is that of the first backward's kernel."""
    u, g, dx, sum_gx, sum_g, x, w, mean, r = given
    in_g, sum_ux, sum_u = _projected(u, x, w, mean, r)
    rows = _Rows(x)
    count = rows.count
    q = rows.mean(rows.view(u) * rows.view(g)) - (sum_g * sum_u + sum_gx * sum_ux) / count**2
    slope = -(r if w is None else w * r) * r * r * q
    in_x = torch.addcmul(rows.spread(-slope * mean), rows.view(x), rows.spread(slope))
    in_x.addcmul_(rows.view(in_g), rows.spread(-r * sum_gx / count))
    in_x.addcmul_(rows.view(dx), rows.spread(-r * sum_ux / count))
    return in_g, rows.restore(in_x), r * q * count


def _fused(given: _Given) -> tuple[Tensor, Tensor, Tensor] | None:
    """The formula in two compiled passes; None where nothing can be compiled."""
    u, g, _, sum_gx, sum_g, x, w, mean, r = given
    shape, count = x.shape, x.numel() // x.shape[1]
    u, g, x = (tensor.detach().reshape(*shape[:2], -1) for tensor in (u, g, x))
    compiled = _compiled()
    if compiled is None:
        return None
    means, derivatives = compiled
    of_u, of_ux, of_ug = means(u, g, x, mean, r)
    of_g, of_gx = sum_g / count, sum_gx / count
    q = of_ug - of_u * of_g - of_ux * of_gx
    scale = r if w is None else w * r
    in_g, in_x = derivatives(u, g, x, mean, r, scale, of_u, of_ux, of_g, of_gx, q)
    return in_g.reshape(shape), in_x.reshape(shape), r * q * count


def _means(u: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    """Channel means of u, u x^ and u g; tensors are (N, C, S)."""
    u, normal = promoted(u), (promoted(x) - mean[:, None]) * r[:, None]
    return tuple(value.mean((0, 2)) for value in (u, u * normal, u * promoted(g)))


def _derivatives(
    u: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor, scale: Tensor, *means: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients in g and in x, of (N, C, S)."""
    of_u, of_ux, of_g, of_gx, q = (value[:, None] for value in means)
    normal = (promoted(x) - mean[:, None]) * r[:, None]
    projected_u = promoted(u) - of_u - normal * of_ux
    projected_g = promoted(g) - of_g - normal * of_gx
    in_x = q * normal + of_gx * projected_u + of_ux * projected_g
    in_g = scale[:, None] * projected_u
    return in_g.to(g.dtype), (-scale * r)[:, None].mul(in_x).to(x.dtype)


@functools.cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Both kernels, for any sizes; None where no compiler is found, which is said once."""
    try:
        kernels = [torch.compile(kernel, dynamic=True) for kernel in (_means, _derivatives)]
        channels = torch.ones(3)
        kernels[0](*torch.ones(3, 2, 3, 5), channels, channels)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        _log.info("batch normalisation's second derivative runs uncompiled: %s", reason)
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
        """The tensor as rows (copied if its memory format is another)."""
        if self.channels_last:
            return tensor.movedim(1, -1).reshape(-1, self.repeats * self.channels)
        return tensor.reshape(*self.shape[:2], -1)

    def restore(self, rows: Tensor) -> Tensor:
        """Rows in the shape and memory format they were viewed from."""
        if self.channels_last:
            return rows.view(self.shape[0], *self.shape[2:], self.channels).movedim(-1, 1)
        return rows.view(self.shape)

    def spread(self, values: Tensor) -> Tensor:
        """One value a channel (C,), shaped to meet rows."""
        values = values.to(self.dtype)
        return values.repeat(self.repeats) if self.channels_last else values[:, None]

    def mean(self, rows: Tensor) -> Tensor:
        """Each channel's mean, (C,)."""
        if self.channels_last:
            total = promoted(rows.sum(0)).view(self.repeats, self.channels).sum(0)
        else:
            total = promoted(rows.sum((0, 2)))
        return total / self.count


def _only_reading(double: DoubleBackward) -> None:
    if not double.reading:
        raise RuntimeError(
            "only the gradient at the input can be differentiated again here: call "
            "DoubleBackward.gradient, or leave out create_graph=True"
        )


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _lowered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
