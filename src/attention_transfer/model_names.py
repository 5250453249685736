"""The parts of a MODEL as users write it: a folder, ``hub:NAME@COMMIT``, or ``NAME@FILE#KEY``."""

import os
from pathlib import Path

from attention_transfer.hub import HUB, hub_folder

__all__ = ["run_folder", "split_models", "split_name", "weights_file"]

MOST_COMMAS = 32
"""Commas that the path of one network may have."""

LOCAL = "timm:local-dir:"


def run_folder(model: str | Path) -> Path | None:
    """Return the folder that a MODEL means, ``~`` expanded; None if it is no folder.

    A network on the hub is fetched if it is not on this machine.

    Raises:
        InputError: the hub cannot be reached, or has no such network.

    >>> run_folder("wrn-16-2") is None
    True
    """
    folder = os.path.expanduser(model)
    if folder.startswith(HUB):
        return hub_folder(folder)
    return Path(folder) if os.path.isdir(folder) else None


def split_name(model: str) -> tuple[str, str]:
    """Split a MODEL that is no folder into NAME and what comes after the ``@``.

    >>> split_name("timm:resnet18@random"), split_name("wrn-16-2")
    (('timm:resnet18', 'random'), ('wrn-16-2', ''))
    """
    name, _, weights = model.partition("@")
    return name, weights


def weights_file(weights: str) -> tuple[Path, str | None]:
    """Split ``FILE#KEY`` into a path, ``~`` expanded, and the key; None if there is none.

    A ``#`` may also be part of the name of a file that exists.

    >>> weights_file("best.pth.tar#state_dict_ema")[1], weights_file("best.pth.tar")[1]
    ('state_dict_ema', None)
    """
    whole = os.path.expanduser(weights)
    file, mark, key = whole.rpartition("#")
    if not mark or os.path.isfile(whole):
        return Path(whole), None
    return Path(file), key


def split_models(models: str) -> list[str]:
    """Split MODELs at commas, except at those inside the path of a folder or a file.

    >>> split_models("wrn-16-2, timm:resnet34")
    ['wrn-16-2', 'timm:resnet34']
    """
    pieces = models.split(",")
    names = []
    while pieces:
        counts = range(min(len(pieces), MOST_COMMAS + 1), 1, -1)
        count = next((n for n in counts if _is_path(",".join(pieces[:n]).strip())), 1)
        names.append(",".join(pieces[:count]).strip())
        del pieces[:count]
    return names


def _is_path(model: str) -> bool:
    """Return whether a MODEL with commas names a folder or a file that exists."""
    if model.startswith(HUB):
        return False  # no comma is part of its name
    name, weights = split_name(model)
    if run_folder(model) or run_folder(model.removeprefix(LOCAL)):
        return True
    if "," in name and not (name.startswith(LOCAL) and run_folder(name.removeprefix(LOCAL))):
        return False
    return bool(weights) and os.path.isfile(weights_file(weights)[0])
