"""Training a network by parts: what keeps its weights, and what learns slowly."""

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.transfer import Transfer

__all__ = ["freeze", "parameter_groups"]


def freeze(network: nn.Module, patterns: str) -> list[nn.Module]:
    """Takes modules out of training: their parameters get no gradient.

    Args:
        network: whose modules.
        patterns: names, separated by commas, with ``*``, ``?`` and ``[...]``.

    Returns:
        The modules; keep them in eval mode, so that batch statistics do not move either.

    Raises:
        InputError: a pattern that no module matches, or nothing would be left to train.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        >>> [type(module).__name__ for module in freeze(network, "[01]")]
        ['Conv2d', 'BatchNorm2d']
    """
    modules = {name: module for name, module in network.named_modules() if name}
    frozen: list[nn.Module] = []
    for pattern in (part.strip() for part in patterns.split(",")):
        found = fnmatch.filter(modules, pattern)
        if not found:
            raise InputError(
                f"no module of {type(network).__name__} matches {pattern!r} to freeze; "
                f"{nearest(pattern, modules)}"
            )
        frozen += [modules[name] for name in found]
    for module in frozen:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"freezing {patterns!r} leaves nothing to train; freeze less")
    return frozen


def parameter_groups(
    transfer: Transfer, backbone_lr: float, heads: Iterable[nn.Module]
) -> list[dict[str, Any]]:
    """Parameters for an optimizer, each group with its share ``scale`` of the learning rate.

    Args:
        transfer: whose student trains, and whose terms.
        backbone_lr: the share for the student but for its last layers.
        heads: those.
    """
    if backbone_lr == 1:
        return [{"params": list(transfer.parameters()), "scale": 1.0}]
    last = {parameter for head in heads for parameter in head.parameters()}
    backbone = [parameter for parameter in transfer.student.parameters() if parameter not in last]
    rest = set(transfer.parameters()) - set(backbone)
    return [
        {"params": backbone, "scale": backbone_lr},
        {"params": [own for own in transfer.parameters() if own in rest], "scale": 1.0},
    ]
