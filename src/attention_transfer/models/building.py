"""Building networks by name: this package's own, those of zoos, and those of factories."""

import os
import re
from pathlib import Path

from torch import nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.model_names import run_folder, weights_file
from attention_transfer.models.file_kinds import program_kind
from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.wide_resnet import WideResNet
from attention_transfer.models.zoo import (
    Factory,
    ImageSize,
    TimmModel,
    TorchvisionModel,
    ZooModel,
)

__all__ = ["build", "zoo_model"]

EXAMPLES = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "nin-thin", "nin-wide")

WEIGHT_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".bin", ".tar", ".safetensors")

PROGRAMS = {
    "TorchScript": "torch.jit.load({file!r})",
    "torch.export": "torch.export.load({file!r}).module()",
}
"""Python that loads a program, by what wrote it."""


def build(name: str, classes: int | None, image_size: ImageSize | None = None) -> nn.Module:
    """Build a network by its name, initialised from torch's random state.

    Args:
        name: NAME of a MODEL (see :mod:`attention_transfer.models.registry`), without ``@``.
        classes: number of classes; None: the network's default (ours: 10).
        image_size: height and width in pixels, for a network of fixed input size.

    Raises:
        InputError: an unknown name, or settings that the network does not take.

    Example:
        >>> type(build("nin-thin-nobn", classes=10)).__name__
        'NetworkInNetwork'
    """
    model = zoo_model(name)
    if model is not None:
        return model.build(classes, image_size)
    classes = 10 if classes is None else classes
    if run_folder(name) is not None:
        raise InputError(
            f"{name} is a folder, and build takes the name of a network; load the trained one of a "
            f"run with at.load({name!r}), or at.models.load_run({name!r})"
        )
    base = name.removesuffix("-nobn")
    batch_norm = base == name
    wide_resnet = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", base)
    if wide_resnet:
        depth, width = map(int, wide_resnet.groups())
        return WideResNet(depth, width, classes, batch_norm=batch_norm)
    if base in ("nin-thin", "nin-wide"):
        return NetworkInNetwork(base.removeprefix("nin-"), classes, batch_norm=batch_norm)
    path, _ = weights_file(name)
    if os.path.isfile(path):  # False for names that no file may have
        raise InputError(_file_alone(name, path))
    if os.sep in name or path.suffix in WEIGHT_SUFFIXES:
        raise InputError(
            f"unknown model {name!r}: there is no such folder or file; expected the folder of a "
            "run, or NAME@FILE for weights, such as wrn-16-2@weights.pth"
        )
    raise InputError(
        f"unknown model {name!r}; {nearest(name, EXAMPLES)} "
        "(wrn-DEPTH-WIDTH, nin-thin or nin-wide, each also with -nobn; timm:NAME; "
        "torchvision:NAME; package.module:factory; or the folder of a run)"
    )


def zoo_model(name: str) -> ZooModel | None:
    """Return the zoo's network or factory that a name means; None: one of ours."""
    source, colon, rest = name.partition(":")
    if not colon:
        return None
    zoos: dict[str, type[ZooModel]] = {"timm": TimmModel, "torchvision": TorchvisionModel}
    return zoos[source](rest) if source in zoos else Factory(name)


def _file_alone(name: str, path: Path) -> str:
    """Return what to give in place of a file without the name of a network."""
    if (path.parent / "model.json").is_file():
        return f"{name} is a file of a run; give the run's folder, {path.parent}"
    text = (
        f"{name} is a file, and a file holds weights alone; give the network they are of too, "
        f"NAME@{name}, such as wrn-16-2@{name} or timm:resnet18@{name}"
    )
    kind = program_kind(path)
    if kind is None:
        return text
    code = PROGRAMS[kind].format(file=str(path))
    return (
        f"{text}; as a program of {kind} it can teach distillation, from Python: "
        f"at.distill(teacher={code}, student=..., attention='none', kd_alpha=0.9)"
    )
