"""Optimizers by timm's names: which there are, and how a run makes its own."""

from typing import Any

import torch
from torch.optim import Optimizer

from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError, first_line, nearest

__all__ = ["check_optimizer", "is_sgd", "make_optimizer"]

COMMON = ("sgd", "adamw", "lamb", "lion", "muon")
"""Optimizers that an error names where no name is near."""

CLOSURES = ("lbfgs",)
"""Optimizers of torch that evaluate the loss several times a step."""

COMPILED = ("kron", "kronw", "kronc")
"""Optimizers that compile their step anew for each shape of weights: minutes a step on a CPU."""


def is_sgd(name: str) -> bool:
    """Return whether an optimizer is SGD, or a variant of it with the same learning rates.

    >>> [name for name in ("sgd", "nesterov", "csgdw", "adamw", "lars") if is_sgd(name)]
    ['sgd', 'nesterov', 'csgdw']
    """
    return "sgd" in name or name in ("momentum", "nesterov", "nesterovw")


def check_optimizer(config: RunConfig) -> None:
    """Check that there is such an optimizer, and that the settings are its own.

    Raises:
        InputError: an unknown optimizer, one that a run cannot use here or that is not
            installed, or momentum for one that has none.
    """
    name = config.optimizer
    if name == "sgd":
        return  # torch's own, for which nobody waits for the import of timm
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    alternatives = f"such as {', '.join(COMMON)}"
    if name in CLOSURES:
        raise InputError(
            f"optimizer {name} evaluates the loss several times a step, which a run does once; "
            f"give another, {alternatives}"
        )
    known = [str(name) for name in list_optimizers()]
    if name not in known:
        hint = nearest(name, known)
        hint = hint if hint.startswith("did you mean") else f"give a name of timm's, {alternatives}"
        raise InputError(f"unknown optimizer {name!r}; {hint}")
    if name in COMPILED and not torch.cuda.is_available():
        raise InputError(
            f"optimizer {name} needs a GPU: it compiles its step anew for each shape of weights, "
            f"which takes minutes on a CPU; give another, {alternatives}"
        )
    info = get_optimizer_info(name)
    if info.second_order:
        raise InputError(
            f"optimizer {name} needs second derivatives of every weight, which a run does not "
            f"compute; give another, {alternatives}"
        )
    try:
        get_optimizer_class(name)
    except (AssertionError, ImportError) as error:
        raise InputError(
            f"optimizer {name} cannot be used here ({first_line(error)}); give another, "
            f"{alternatives}"
        ) from None
    if config.momentum != RunConfig.model_fields["momentum"].default and not info.has_momentum:
        raise InputError(f"optimizer {name} has no setting momentum; leave it out, or give sgd")
    if not config.nesterov and not (info.defaults or {}).get("nesterov"):
        raise InputError(
            f"optimizer {name} has no Nesterov momentum to turn off; leave out nesterov, or give "
            "sgd"
        )


def make_optimizer(
    config: RunConfig, groups: list[dict[str, Any]], device: torch.device
) -> Optimizer:
    """Return a run's optimizer.

    Args:
        config: of the run, resolved and checked.
        groups: of parameters.
        device: of the parameters.
    """
    nesterov = config.nesterov and config.momentum > 0
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=nesterov, **settings)
    from timm.optim import create_optimizer_v2, get_optimizer_info

    options: dict[str, Any] = {}
    if (get_optimizer_info(config.optimizer).defaults or {}).get("nesterov"):
        options["nesterov"] = nesterov
    if config.optimizer in ("adam", "adamw") and device.type in ("cpu", "cuda"):
        options["fused"] = True  # one kernel for a step, in place of a dozen for each parameter
    optimizer: Optimizer = create_optimizer_v2(
        groups, opt=config.optimizer, momentum=config.momentum, **settings, **options
    )
    return optimizer
