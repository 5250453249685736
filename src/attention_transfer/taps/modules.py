"""Modules of a network by name, and their outputs."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "declared_points",
    "evaluating",
    "module_of",
    "outputs_of",
    "structure_copy",
    "to_channels_last",
    "unwrapped",
]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(network, wrappers):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Put the network into eval mode inside the block; restore every module's mode after it."""
    # A frozen program of TorchScript has no mode.
    modes = [(one, one.training) for one in network.modules() if hasattr(one, "training")]
    network.eval()
    try:
        yield network
    finally:
        for module, training in modes:
            module.training = training


def declared_points(network: nn.Module) -> tuple[str, ...]:
    """Return the points a network declares: names in its attribute ``attention_points``."""
    declared = getattr(network, "attention_points", ())
    named = isinstance(declared, list | tuple) and all(isinstance(name, str) for name in declared)
    return tuple(declared) if named else ()


def module_of(point: str) -> str:
    """Return the module's name in a point's, which for one of several outputs is ``name#key``.

    >>> module_of("backbone.body#0")
    'backbone.body'
    """
    return point.partition("#")[0]


def outputs_of(name: str, output: object) -> Iterator[tuple[str, object]]:
    """Yield a module's outputs by point.

    One tensor has the module's name; those of a tuple, list or dictionary are ``name#key``, nested
    ones ``name#key#key``.

    >>> list(outputs_of("encoder", ("tokens", {"grid": (7, 7)})))
    [('encoder#0', 'tokens'), ('encoder#1#grid#0', 7), ('encoder#1#grid#1', 7)]
    """
    if isinstance(output, Mapping):
        parts: Iterable[tuple[object, object]] = output.items()
    elif isinstance(output, list | tuple):
        parts = enumerate(output)
    else:
        yield name, output
        return
    for key, part in parts:
        yield from outputs_of(f"{name}#{key}", part)


def structure_copy(network: nn.Module, *, frozen: bool = True) -> nn.Module:
    """Return a copy of a network's structure over the same memory, without hooks.

    Whatever a forward pass leaves in the copy's modules stays out of the network.

    Args:
        network: the network to copy.
        frozen: whether the copy's parameters require no gradients; else they are the network's.

    Raises:
        Exception: whatever a module raises that cannot be copied.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> structure_copy(network).weight.data_ptr() == network.weight.data_ptr()
        True
    """
    memory: dict[int, Any] = {}
    for module in network.modules():
        memory |= {id(tensor): tensor for tensor in _tensors_in(vars(module))}
    if frozen:
        for parameter in network.parameters():
            memory[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    copied = copy.deepcopy(network, memory)
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return copied


def to_channels_last(network: nn.Module) -> None:
    """Put the four-dimensional weights of a network, those of 2d convolutions, in channels_last.

    ``network.to(memory_format=torch.channels_last)`` refuses networks with 3d convolutions.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(4, 4, 3))
    >>> to_channels_last(network)
    >>> network[0].weight.is_contiguous(memory_format=torch.channels_last)
    True
    """

    def convert(value: Tensor) -> Tensor:
        return value.to(memory_format=torch.channels_last) if value.dim() == 4 else value

    network._apply(convert)  # type: ignore[no-untyped-call]


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in dictionaries, lists and tuples, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(part)
