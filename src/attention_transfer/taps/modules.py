"""Modules of a network by name, and what they put out."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "module_of", "outputs_of", "unwrapped"]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

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
    """The network in eval mode inside the block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield network
    finally:
        for module, training in modes:
            module.training = training


def module_of(point: str) -> str:
    """The module's name in a point's, which for one of several outputs is ``name#key``.

    >>> module_of("backbone.body#0")
    'backbone.body'
    """
    return point.partition("#")[0]


def outputs_of(name: str, output: object) -> Iterator[tuple[str, object]]:
    """What a module put out, by point: one tensor under its own name, those of a tuple, list or
    dictionary as ``name#key``, nested ones as ``name#key#key``.

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
