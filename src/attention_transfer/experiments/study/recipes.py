"""Recipes: the lengths of a study's runs, and the settings that go with them."""

from typing import Any

from attention_transfer.config.studies import STEPS, Recipe

__all__ = ["recipe_settings", "shortened"]

CIFAR: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "step",
    "nesterov": False,
    "weight_decay": 5e-4,
}
"""The paper's settings on CIFAR-10."""

IMAGENET: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 256,
    "lr": 0.1,
    "schedule": "step",
    "nesterov": False,
    "weight_decay": 1e-4,
}
"""The paper's settings on ImageNet; its steps there are x0.1 at 30, 60 and 90 % of the run."""

MINUTES: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 512,
    "optimizer": "sgd",
    "lr": 0.8,
    "schedule": "one-cycle",
    "nesterov": True,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "precision": "auto",
}
"""A few epochs in large batches, one-cycle, with smoothed labels, bf16 where the hardware has it:
the manner of the records of fast training on CIFAR-10.
"""

SHORTER = 10
"""The recipe "short" divides every length by this."""


def recipe_settings(recipe: Recipe | None, data: str) -> dict[str, Any]:
    """Return the settings that all else in a study overrides.

    Args:
        recipe: of the study; None: the paper's for its own data sets, those of a run for others.
        data: DATA.

    >>> recipe_settings("short", "cifar10:data")["epochs"], recipe_settings(None, "folder:photos")
    (200, {})
    """
    kind = data.partition(":")[0]
    if recipe == "minutes":
        return MINUTES
    if kind == "imagenet":
        return IMAGENET
    if recipe == "paper" or kind in ("cifar10", "cifar100"):
        return CIFAR
    return {}


def shortened(settings: dict[str, Any], default_epochs: int) -> dict[str, Any]:
    """Return settings of a run with a tenth of its length, at least one epoch or step.

    >>> shortened({"epochs": "200", "lr": 0.1}, 15)
    {'epochs': 20, 'lr': 0.1}
    """
    name = STEPS if STEPS in settings else "epochs"
    length = int(settings.get(name, default_epochs))
    changed: dict[str, Any] = {name: max(1, round(length / SHORTER))}
    warmup = settings.get("warmup")
    if warmup is not None:
        changed["warmup"] = float(warmup) / SHORTER
    return {**settings, **changed}
