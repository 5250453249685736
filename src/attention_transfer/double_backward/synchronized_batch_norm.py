"""Batch normalisation by the statistics of all processes' images."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from attention_transfer.double_backward.batch_norm import BatchNormCall
from attention_transfer.functional.maps import to_float32

__all__ = ["SynchronizedBatchNorm"]


class SynchronizedBatchNorm(TorchFunctionMode):
    """A block in which batch normalisation in training mode is that of all processes' images.

    With n_r values of a channel in process r, of mean m_r and variance v_r,

        n = sum n_r,    mean = sum n_r m_r / n,    var = sum n_r (v_r + (m_r - mean)^2) / n,

    and y = w (x - mean) / sqrt(var + eps) + b. Running statistics take ``mean`` and the unbiased
    variance n var / (n - 1), as with the whole batch in one process. Plain operations, which can be
    differentiated twice and run on any device: ``torch.nn.SyncBatchNorm`` has no second derivative
    and refuses tensors on the CPU. Each layer exchanges 2 C + 1 floats a process in the forward
    pass, and as many in the backward pass.

    Example:
        >>> with SynchronizedBatchNorm():  # doctest: +SKIP
        ...     loss = network(images).square().mean()
    """

    blocks = 0
    """How many blocks the program is in."""

    def __enter__(self) -> "SynchronizedBatchNorm":
        type(self).blocks += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        type(self).blocks -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        batch_norm = BatchNormCall.of(func, args, kwargs)
        if batch_norm is not None and batch_norm.training:
            return _batch_norm(batch_norm)
        return func(*args, **(kwargs or {}))


def _batch_norm(call: BatchNormCall) -> Tensor:
    inputs, running_mean, running_var, weight, bias, _, momentum, eps = call
    with torch.autocast(inputs.device.type, enabled=False):
        features = to_float32(inputs)
        axes = [axis for axis in range(inputs.dim()) if axis != 1]
        counts, means, variances = _of_all_processes(features, axes)
        count = counts.sum()
        if count <= 1:
            raise ValueError(
                "expected more than one value per channel in training mode, got one in all "
                f"processes together, of shape {tuple(inputs.shape)}"
            )
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * count / (count - 1)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        scale = (variance + eps).rsqrt()
        if weight is not None:
            scale = scale * to_float32(weight)
        shift = -mean * scale
        if bias is not None:
            shift = shift + to_float32(bias)
        shape = [-1 if axis == 1 else 1 for axis in range(inputs.dim())]
        return (features * scale.view(shape) + shift.view(shape)).to(inputs.dtype)


def _of_all_processes(features: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the counts (P, 1), means and variances (P, C) of all processes' features."""
    channels = features.shape[1]
    count = features.new_full((1,), features.numel() / channels)
    variance, mean = torch.var_mean(features, axes, correction=0)
    own = torch.cat([count, mean, variance])
    others = own.new_zeros(dist.get_world_size(), own.numel())
    rank = dist.get_rank()
    rows = torch.cat([others[:rank], own[None], others[rank + 1 :]])
    rows = _Sum.apply(rows)  # one row a process: the sum gathers them
    return rows[:, :1], rows[:, 1 : 1 + channels], rows[:, 1 + channels :]


class _Sum(Function):
    """The sum over processes; its gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)
