"""The block in which a network uses this package's convolution and batch normalisation."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from attention_transfer.double_backward.batch_norm import BatchNorm, BatchNormCall
from attention_transfer.double_backward.convolution import Convolution
from attention_transfer.double_backward.first_pass import FirstPass
from attention_transfer.double_backward.synchronized_batch_norm import SynchronizedBatchNorm
from attention_transfer.functional.maps import to_float32

__all__ = ["DoubleBackward"]


class DoubleBackward(TorchFunctionMode):
    """A block for the forward pass of a network whose input gradient is to be differentiated.

    Besides answering ``conv2d``, ``batch_norm`` and ``hardsigmoid``, it chooses the attention
    kernel that has a second derivative, and runs compiled parts of the network eagerly: one
    compiled graph would end the second derivative.

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
        """Whether any batch normalisation used the statistics of the batch."""
        # Calls of batch norm then go on to the synchronised one, which surrounds this block.
        self._plain_batch_norm = SynchronizedBatchNorm.blocks > 0
        self._first_pass = FirstPass()
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
        batch_norm = BatchNormCall.of(func, args, kwargs)
        if batch_norm is not None:
            return self._batch_norm(batch_norm)
        if func is functional.hardsigmoid:
            return self._hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def gradient(self, loss: Tensor, images: Tensor, create_graph: bool = True) -> Tensor:
        """Return d loss / d images, itself differentiable, without the weights' gradients.

        Args:
            loss: a scalar, of a network run inside this block.
            images: the tensor that requires a gradient.
            create_graph: whether the gradient is to be differentiated.

        Raises:
            RuntimeError: as autograd does, if the loss does not depend on the images.
        """
        with self._first_pass:
            return torch.autograd.grad(loss, images, create_graph=create_graph)[0]

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
        if isinstance(padding, str) or input.dim() != 4 or _left_to_autograd(weight, bias):
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        tensors: Iterable[Tensor | None] = (input, weight, bias)
        sizes = tuple(_pair(size) for size in (stride, padding, dilation))
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            tensors = (None if given is None else _lowered(given, dtype) for given in tensors)
        with torch.autocast(device, enabled=False):
            result: Tensor = Convolution.apply(self._first_pass, *tensors, (*sizes, groups))
        return result

    def _batch_norm(self, call: BatchNormCall) -> Tensor:
        self.batch_statistics |= call.training
        # Fixed statistics: an affine function, whose second derivative is fast.
        # One value a channel: PyTorch's own error.
        one_value = call.input.numel() == call.input.shape[1]
        left = self._plain_batch_norm or _left_to_autograd(call.weight, call.bias)
        if not call.training or one_value or left:
            return call.by_pytorch()
        running = (call.running_mean, call.running_var, call.training, call.momentum, call.eps)
        result: Tensor = BatchNorm.apply(
            self._first_pass, call.input, call.weight, call.bias, running
        )
        return result

    def _hardsigmoid(self, input: Tensor, inplace: bool = False) -> Tensor:
        """Compute hard sigmoid by operations that have a second derivative; PyTorch's has none."""
        return (functional.relu6(to_float32(input) + 3) / 6).to(input.dtype)


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _left_to_autograd(*weights: Tensor | None) -> bool:
    """Return whether our functions would miss a gradient that PyTorch's give.

    Weights may be a function of the images (dynamic convolutions, conditional batch norms): then
    the gradient at the images goes through them too, and ours answers the input's alone. And
    activation checkpointing, known by its hooks, computes again in the backward pass what was
    saved, outside the block, by PyTorch's functions.
    """
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return hooked or any(weight is not None and weight.grad_fn is not None for weight in weights)


def _lowered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a dtype as autocast does: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
