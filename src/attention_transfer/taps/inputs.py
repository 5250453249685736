"""Inputs of a network: one tensor, a tuple of tensors, or a dictionary of them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.taps.modules import unwrapped

__all__ = [
    "Inputs",
    "call_network",
    "input_tensors",
    "main_input",
    "map_inputs",
    "with_main_input",
]

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""A tensor, or tensors as a tuple (positional arguments) or a dictionary (keyword arguments), each
with the batch as its first axis.
"""


def call_network(network: nn.Module, inputs: Inputs) -> Any:
    """Call a network with a tensor, with a tuple as its arguments, or a dictionary as keywords.

    Raises:
        InputError: the network's ``forward`` does not take such inputs, or they are no tensors.

    Example:
        >>> call_network(nn.Bilinear(2, 2, 1), (torch.rand(4, 2), torch.rand(4, 2))).shape
        torch.Size([4, 1])
    """
    if isinstance(inputs, Tensor):
        return network(inputs)
    _check(network, inputs)
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs)


def main_input(inputs: Inputs) -> Tensor:
    """Return the tensor that attention maps are maps of: the images, the video or the signal.

    It is the floating-point tensor (N, C, *S) with the most spatial axes, one to three, and of
    equals the first, which in a dictionary is a matter of its order; the first tensor where there
    is none.

    Example:
        >>> main_input({"mask": torch.ones(2, 4), "pixel_values": torch.rand(2, 3, 8, 8)}).shape
        torch.Size([2, 3, 8, 8])
    """
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
