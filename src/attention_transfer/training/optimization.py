"""The settings of optimization that a run chooses: by its network, and by its optimizer."""

import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, NamedTuple

from torch import nn

from attention_transfer.config import RunConfig
from attention_transfer.config.optimization import CHOSEN_BY_THE_RUN
from attention_transfer.taps import unwrapped
from attention_transfer.training.optimizers import check_optimizer, is_sgd

__all__ = ["describe_optimization", "is_transformer", "resolve_optimization"]

LEARNING_RATES = {"*adafactor*": 1e-3, "*muon": 1e-3, "*lamb*": 5e-3}
"""Learning rates in place of the optimizer's own: for Adafactor and Muon that of AdamW, whose size
of step they have; for LAMB that of timm's recipes.
"""

COUPLED = ("adam", "*adamax", "adagrad", "adadelta", "nadam", "*legacy", "radam", "*rmsprop*",
           "*adopt", "kron", "madgrad", "novograd", "*lars", "*larc")  # fmt: skip
"""Optimizers whose weight decay is a part of the gradient, where 0.05 would be far too much."""

SCRATCH_TO_TRAINED = 0.1
"""The learning rate for a student with trained weights, as a share of that from scratch."""


class _Defaults(NamedTuple):
    """The defaults of what was not given, by the names of the settings."""

    optimizer: str = "sgd"
    lr: float = 0.4
    schedule: str = "one-cycle"
    warmup: float | None = None
    weight_decay: float = 5e-4
    weight_decay_exclude: str | None = None
    clip_gradient: float | None = None


def is_transformer(network: nn.Module) -> bool:
    """Return whether a network is of the kinds that are trained by AdamW.

    These have attention layers, or layer norms and no batch norm: vision transformers, their
    hybrids, mixers and ConvNeXt. Attention over channels, or in a pooling layer, makes none.

    Example:
        >>> convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> is_transformer(convolutional), is_transformer(nn.TransformerEncoderLayer(8, 2))
        (False, True)
    """
    kinds = {type(module) for module in unwrapped(network).modules()}
    names = {kind.__name__.lower() for of in kinds for kind in of.__mro__}
    if any("attention" in name and not re.search("pool|channel|spatial", name) for name in names):
        return True
    batch_norm = any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    return not batch_norm and any("layernorm" in name or "rmsnorm" in name for name in names)


def resolve_optimization(
    config: RunConfig, student: nn.Module, trained: bool
) -> tuple[RunConfig, list[str]]:
    """Return the configuration with what was not given, and lines that say what it is and why.

    Args:
        config: of the run.
        student: the network that learns.
        trained: whether the student begins with trained weights.

    Raises:
        InputError: as of :func:`check_optimizer`.
    """
    open_settings = [name for name in CHOSEN_BY_THE_RUN if name not in config.model_fields_set]
    transformer = is_transformer(student)
    if "optimizer" in open_settings:
        config = config.replace(optimizer="adamw" if transformer else "sgd")
        check_optimizer(config)
    defaults = _defaults(config, transformer, trained)._asdict()
    chosen = {name: defaults[name] for name in open_settings}
    config = config.replace(**chosen)
    return config, list(_notices(config, chosen, transformer, trained))


def _defaults(config: RunConfig, transformer: bool, trained: bool) -> _Defaults:
    """Return the defaults for a network and an optimizer."""
    clip = 1.0 if transformer else None
    if is_sgd(config.optimizer):
        # A transformer diverges at the rate of convolutional networks.
        lr = 0.03 if transformer else 0.4
        return _Defaults(config.optimizer, lr=lr, clip_gradient=clip)
    cosine = "schedule" not in config.model_fields_set or config.schedule == "cosine"
    coupled = any(fnmatch(config.optimizer, pattern) for pattern in COUPLED)
    return _Defaults(
        config.optimizer,
        lr=_learning_rate(config.optimizer) * (SCRATCH_TO_TRAINED if trained else 1),
        schedule="cosine",
        warmup=min(5.0, config.epochs / 10) if cosine else None,
        weight_decay=1e-4 if coupled else 0.05,
        weight_decay_exclude="norms-and-biases",
        clip_gradient=clip,
    )


def _learning_rate(optimizer: str) -> float:
    """Return the default learning rate of an optimizer other than SGD."""
    from timm.optim import get_optimizer_info

    for pattern, rate in LEARNING_RATES.items():
        if fnmatch(optimizer, pattern):
            return rate
    kind = get_optimizer_info(optimizer).opt_class
    if isinstance(kind, str):  # of another package
        return 1e-3
    own: object = inspect.signature(kind).parameters["lr"].default
    return own if isinstance(own, float) else 1e-3


def _notices(
    config: RunConfig, chosen: dict[str, Any], transformer: bool, trained: bool
) -> Iterator[str]:
    if "optimizer" in chosen and config.optimizer != "sgd":
        yield (
            f"{config.student} has attention or layer norms, so it is trained by "
            f"{config.optimizer} by default; --optimizer sgd would train it by SGD"
        )
    if trained and "lr" in chosen and is_sgd(config.optimizer):
        yield (
            f"{config.student} begins with trained weights, and the default lr {config.lr:g} is "
            "meant for training from scratch; for fine-tuning give a lower one, such as --lr 0.01"
        )


def describe_optimization(config: RunConfig) -> str:
    """Return a line that says how a run optimizes.

    Args:
        config: resolved.

    Example:
        >>> describe_optimization(RunConfig(student="wrn-16-1", clip_gradient=1.0))
        'optimizer sgd: momentum 0.9 (Nesterov), weight decay 0.0005, gradients clipped at 1'
    """
    parts = []
    if is_sgd(config.optimizer):
        nesterov = " (Nesterov)" if config.nesterov and config.momentum else ""
        parts.append(f"momentum {config.momentum:g}{nesterov}")
    spared = " except on norms and biases" if config.weight_decay_exclude else ""
    parts.append(f"weight decay {config.weight_decay:g}{spared}")
    if config.warmup is not None:
        parts.append(f"warmup over {config.warmup:g} epochs")
    if config.clip_gradient is not None:
        parts.append(f"gradients clipped at {config.clip_gradient:g}")
    if config.layer_decay is not None:
        parts.append(f"layer decay {config.layer_decay:g}")
    if config.label_smoothing:
        parts.append(f"label smoothing {config.label_smoothing:g}")
    if config.ema is not None:
        parts.append(f"weights averaged with decay {config.ema:g}")
    if config.early_stopping is not None:
        parts.append(f"stops after {config.early_stopping} epochs without a better one")
    return f"optimizer {config.optimizer}: {', '.join(parts)}"
