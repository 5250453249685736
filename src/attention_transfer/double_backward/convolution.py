"""conv2d, whose second derivative in the weights is computed as a first derivative is.

PyTorch computes it as a convolution whose kernel is as large as the image.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from attention_transfer.double_backward.first_pass import FirstPass

__all__ = ["Convolution"]


class Convolution(Function):
    """conv2d, whose input gradient is :class:`ConvolutionInputGradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        first_pass: FirstPass,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.first_pass, ctx.settings = first_pass, settings
        return torch.conv2d(features, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        _, need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            ctx.first_pass.check()
            dx = ConvolutionInputGradient.apply(gradient, weight, features.detach(), ctx.settings)
            return None, dx, None, None, None
        mask = [need_input, need_weight, need_bias]
        return None, *_convolution_backward(gradient, features, weight, ctx.settings, mask), None


class ConvolutionInputGradient(Function):
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
