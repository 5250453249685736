"""Fine-tuning: frozen modules, and a smaller learning rate for the backbone."""

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.transfer import Transfer

__all__ = ["freeze", "parameter_groups"]


def freeze(network: nn.Module, patterns: str) -> list[nn.Module]:
    """Freeze modules: their parameters get no gradient.

    Args:
        network: the network that is trained.
        patterns: module names separated by commas; ``*``, ``?`` and ``[...]`` match several.

    Returns:
        The frozen modules; keep them in eval mode, so that batch statistics do not change either.

    Raises:
        InputError: a pattern matches no module, or nothing is left to train.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        >>> [type(module).__name__ for module in freeze(network, "[01]")]
        ['Conv2d', 'BatchNorm2d']
    """
    modules = {name: module for name, module in network.named_modules() if name}
    frozen: list[nn.Module] = []
    for pattern in (part.strip() for part in patterns.split(",")):
        names = fnmatch.filter(modules, pattern)
        if not names:
            raise InputError(
                f"no module of {type(network).__name__} matches {pattern!r} to freeze; "
                f"{nearest(pattern, modules)}"
            )
        frozen += [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"freezing {patterns!r} leaves nothing to train; freeze less")
    return frozen


def parameter_groups(
    transfer: Transfer, backbone_lr: float, heads: Iterable[nn.Module]
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, each with the ``scale`` of its learning rate.

    Args:
        transfer: holds the student and the terms, which may have parameters.
        backbone_lr: the scale for the student without its heads; everything else has 1.
        heads: the student's layers that give its logits.
    """
    if backbone_lr == 1:
        return [{"params": list(transfer.parameters()), "scale": 1.0}]
    head = {parameter for module in heads for parameter in module.parameters()}
    backbone = [parameter for parameter in transfer.student.parameters() if parameter not in head]
    in_backbone = set(backbone)
    rest = [parameter for parameter in transfer.parameters() if parameter not in in_backbone]
    return [
        {"params": backbone, "scale": backbone_lr},
        {"params": rest, "scale": 1.0},
    ]
