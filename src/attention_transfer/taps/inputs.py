"""Inputs of a network: one tensor, a tuple of tensors, or a dictionary of them."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps.modules import unwrapped

__all__ = [
    "Inputs",
    "as_floats",
    "call_network",
    "in_dtype",
    "input_tensors",
    "main_input",
    "map_inputs",
    "own_dtype",
    "own_precision",
    "with_main_input",
]

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""A tensor, or tensors as a tuple (positional arguments) or a dictionary (keyword arguments), each
with the batch as its first axis.
"""


_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def as_floats(dtype: torch.dtype) -> str:
    """Return the code that makes floating-point images from 0 to 1 of integers.

    >>> as_floats(torch.uint16)
    'images.float() / 65535'
    """
    unsigned = dtype in (torch.uint8, torch.uint16)
    return f"images.float() / {torch.iinfo(dtype).max if unsigned else 'the largest value'}"


def call_network(network: nn.Module, inputs: Inputs) -> Any:
    """Call a network with a tensor, with a tuple as its arguments, or a dictionary as keywords.

    Raises:
        InputError: the network's ``forward`` does not take such inputs, or they are no tensors;
            it fails, and its inputs are of another kind or on another device than its weights.

    Example:
        >>> call_network(nn.Bilinear(2, 2, 1), (torch.rand(4, 2), torch.rand(4, 2))).shape
        torch.Size([4, 1])
    """
    if not isinstance(inputs, Tensor):
        _check(network, inputs)
    try:
        with own_precision(network, inputs):
            if isinstance(inputs, Tensor):
                return network(inputs)
            if isinstance(inputs, Mapping):
                return network(**inputs)
            return network(*inputs)
    except (RuntimeError, TypeError) as error:
        misfit = _misfit(unwrapped(network), main_input(inputs))
        if misfit is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(f"{misfit} ({first_line(error)})") from error


def own_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the floating-point dtype of the images that a network takes; None: any.

    It is that of its first convolution's or linear layer's weight, or else of its first parameter.

    >>> own_dtype(nn.Sequential(nn.ReLU(), nn.Linear(2, 2).bfloat16()))
    torch.bfloat16
    """
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    for module in network.modules():
        weight = module.weight if isinstance(module, layers) else None
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return weight.dtype
    floating = (value.dtype for value in network.parameters() if value.is_floating_point())
    return next(floating, None)


def own_precision(network: nn.Module, inputs: Inputs) -> AbstractContextManager[object]:
    """Return a block without autocast for a network of 16 bits that are not autocast's, else none.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     with own_precision(nn.Linear(2, 2).half(), torch.rand(1, 2)):
    ...         torch.is_autocast_enabled("cpu")
    False
    """
    device = main_input(inputs).device.type
    autocast = _autocast_dtype(device)
    if autocast is not None:
        dtype = own_dtype(network)
        if dtype in _SIXTEEN_BITS and dtype != autocast:
            return torch.autocast(device, enabled=False)
    return nullcontext()


def in_dtype(inputs: Inputs, dtype: torch.dtype | None) -> Inputs:
    """Return inputs with a floating-point main one, and others of its dtype, in the dtype that a
    network takes.

    >>> in_dtype(torch.zeros(1, 2), own_dtype(nn.Linear(2, 2).double())).dtype
    torch.float64
    """
    main = main_input(inputs)
    kept = main.dtype
    if dtype is None or dtype == kept or not kept.is_floating_point:
        return inputs
    if dtype == _autocast_dtype(main.device.type) and kept != torch.float64:
        return inputs  # autocast converts them where a layer computes in 16 bits
    return map_inputs(lambda value: value.to(dtype) if value.dtype == kept else value, inputs)


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Return autocast's dtype on a type of device; None where it is off."""
    available = torch.amp.is_autocast_available(device)
    return (
        torch.get_autocast_dtype(device)
        if available and torch.is_autocast_enabled(device)
        else None
    )


def main_input(inputs: Inputs) -> Tensor:
    """Return the tensor that attention maps are maps of: the images, the video or the signal.

    It is the floating-point tensor (N, C, *S) with the most spatial axes, one to three, and of
    equals the first, which in a dictionary is a matter of its order; the first tensor where there
    is none.

    Example:
        >>> main_input({"mask": torch.ones(2, 4), "pixel_values": torch.rand(2, 3, 8, 8)}).shape
        torch.Size([2, 3, 8, 8])
    """
    if isinstance(inputs, Tensor):
        return inputs
    tensors = input_tensors(inputs)
    spatial = [value for value in tensors if value.is_floating_point() and 3 <= value.dim() <= 5]
    return max(spatial, key=Tensor.dim, default=tensors[0])


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with a function applied to each tensor.

    >>> map_inputs(lambda tensor: tensor[:1], (torch.rand(4, 2), torch.rand(4, 2)))[1].shape
    torch.Size([1, 2])
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    return tuple(function(value) for value in inputs)


def with_main_input(inputs: Inputs, replacement: Tensor) -> Inputs:
    """Return the inputs with another tensor in place of :func:`main_input`.

    >>> with_main_input((torch.zeros(1, 3, 2, 2), torch.ones(1)), torch.ones(1, 3, 2, 2))[0].sum()
    tensor(12.)
    """
    main = main_input(inputs)
    if isinstance(inputs, Tensor):
        return replacement
    if isinstance(inputs, Mapping):
        name = next(name for name, value in inputs.items() if value is main)
        return {**inputs, name: replacement}
    place = next(place for place, value in enumerate(inputs) if value is main)
    return (*inputs[:place], replacement, *inputs[place + 1 :])


def input_tensors(inputs: object) -> list[Tensor]:
    """Return the tensors of a network's inputs.

    Raises:
        InputError: they are no inputs, or empty, or hold something else.

    Example:
        >>> len(input_tensors((torch.rand(4, 2), torch.rand(4, 2))))
        2
    """
    if isinstance(inputs, Tensor):
        return [inputs]
    values = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    if not isinstance(values, list | tuple) or isinstance(inputs, list):
        kind = type(inputs).__name__
        got = "a list; give tuple(inputs)" if isinstance(inputs, list) else f"a {kind}"
    elif not values:
        got = "an empty one"
    elif not all(isinstance(value, Tensor) for value in values):
        kinds = sorted({type(value).__name__ for value in values if not isinstance(value, Tensor)})
        got = f"one that holds {', '.join(kinds)}"
    else:
        return list(values)
    raise InputError(
        "inputs must be a tensor, a tuple of tensors (positional arguments) or a dictionary of "
        f"tensors (keyword arguments), got {got}"
    )


def _check(network: nn.Module, inputs: object) -> None:
    """Raise an InputError if a tuple or dictionary does not fit the network's ``forward``."""
    tensors = input_tensors(inputs)
    inner = unwrapped(network)
    try:
        signature = inspect.signature(inner.forward)
    except (TypeError, ValueError):
        return  # a forward written in another language; calling it tells
    try:
        if isinstance(inputs, Mapping):
            signature.bind(**inputs)
        else:
            signature.bind(*tensors)
    except TypeError as error:
        got = (
            f"a dictionary with {', '.join(inputs)}"
            if isinstance(inputs, Mapping)
            else f"a tuple of {len(tensors)}"
        )
        expected = ", ".join(signature.parameters) or "nothing"
        raise InputError(
            f"{type(inner).__name__}.forward takes ({expected}), got {got} ({error}); give both "
            "networks inputs they take, or wrap one of them"
        ) from None


def _misfit(network: nn.Module, images: Tensor) -> str | None:
    """Return why a network could not take images that it failed on; None: for a reason of its own.

    Args:
        network: the network.
        images: its main input.
    """
    name = type(network).__name__
    weights = dict(network.named_parameters())
    if not images.is_floating_point() and weights:
        return (
            f"{name} failed on {images.dtype} images, expected floating-point ones; give "
            f"{as_floats(images.dtype)}, normalized as its weights expect"
        )
    devices = {str(weight.device): weight_name for weight_name, weight in weights.items()}
    if devices.keys() - {str(images.device)}:
        places = " and ".join(f"on {device} ({weight})" for device, weight in devices.items())
        return (
            f"{name} has weights {places}, and its images are on {images.device}; move them to "
            "one device: transfer.to(device) moves both networks, images.to(device) the images"
        )
    dtypes = {
        str(weight.dtype).removeprefix("torch."): weight_name
        for weight_name, weight in weights.items()
        if weight.is_floating_point()
    }
    if len(dtypes) > 1:
        kinds = " and ".join(f"{dtype} ({weight})" for dtype, weight in dtypes.items())
        return (
            f"{name} has weights of several dtypes, {kinds}, which do not fit each other; convert "
            f"all of it, such as by network.float(), or run it under torch.autocast"
        )
    return None
