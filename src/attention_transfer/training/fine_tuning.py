"""Parameters that learn differently: frozen, slower, or without weight decay."""

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps import unwrapped
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
    transfer: Transfer,
    backbone_lr: float,
    heads: Iterable[nn.Module],
    *,
    weight_decay_exclude: str | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, each with the ``scale`` of its learning rate.

    Args:
        transfer: holds the student and the terms, which may have parameters.
        backbone_lr: the scale for the student without its heads; everything else has 1.
        heads: the student's layers that give its logits.
        weight_decay_exclude: "norms-and-biases": groups of these, and of what the student excludes
            itself, have a ``weight_decay`` of 0; None: no group has one of its own.
        layer_decay: the scale of each layer of the student as a share of the next one's.

    Raises:
        InputError: a layer decay for a network whose layers are not known.
    """
    student = unwrapped(transfer.student)
    scales = dict.fromkeys(transfer.parameters(), 1.0)
    if layer_decay is not None:
        scales.update(_layer_scales(student, layer_decay))
    if backbone_lr != 1:
        head = {parameter for module in heads for parameter in module.parameters()}
        for parameter in student.parameters():
            scales[parameter] *= 1.0 if parameter in head else backbone_lr
    exempt: set[nn.Parameter] = set()
    if weight_decay_exclude is not None:
        terms = transfer.named_terms.values()
        exempt = {parameter for module in (student, *terms) for parameter in _without_decay(module)}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, scale in scales.items():
        group = groups.setdefault((scale, parameter in exempt), {"params": [], "scale": scale})
        group["params"].append(parameter)
        if parameter in exempt:
            group["weight_decay"] = 0.0
    return list(groups.values())


def _without_decay(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield norms, biases, and what a network of timm's excludes, such as position embeddings."""
    from timm.optim import param_groups_weight_decay

    names: set[str] = getattr(module, "no_weight_decay", set)()
    for group in param_groups_weight_decay(module, 1.0, no_weight_decay_list=names):
        if group["weight_decay"] == 0:
            yield from group["params"]


def _layer_scales(student: nn.Module, layer_decay: float) -> Iterator[tuple[nn.Parameter, float]]:
    """Yield the parameters of a network of timm's, each with the scale of its layer."""
    if not hasattr(student, "group_matcher"):
        raise InputError(
            f"layer_decay needs a network that knows its layers, as timm's do, got "
            f"{type(student).__name__}; leave it out, or give --backbone-lr"
        )
    from timm.optim import param_groups_layer_decay

    for group in param_groups_layer_decay(student, layer_decay=layer_decay):
        for parameter in group["params"]:
            yield parameter, group["lr_scale"]
