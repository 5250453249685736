"""From a MODEL as users write it to a network.

``NAME``, ``NAME@random``, ``NAME@FILE.safetensors`` or a run's folder; NAME is ``wrn-d-k``,
``nin-thin`` or ``nin-wide``, each also with ``-nobn`` (no batch norm).
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from attention_transfer.config import Count, Positive
from attention_transfer.errors import InputError, nearest
from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.wide_resnet import WideResNet

__all__ = ["LoadedModel", "ModelCard", "build", "load", "load_run", "load_weights"]

EXAMPLES = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "nin-thin", "nin-wide")


@dataclass(frozen=True)
class ModelCard:
    """How to build a network and feed it: the contents of a run's ``model.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: tuple[Count, Count, Count]
    mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=3)]
    data: str
    """What it was trained on."""
    schema_version: Literal[1] = 1

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""
        return len(self.class_names)

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """The card in a ``model.json``.

        Raises:
            InputError: it cannot be read, or is not such a card.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read the model card {path}: {error.strerror}") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, fault['loc']))} {fault['msg'].removeprefix('Input ')}".strip()
                for fault in error.errors()
            ]
            raise InputError(f"{path} is not a model card: {_first(problems)}") from None

    def write(self, path: Path) -> None:
        """The card as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class LoadedModel:
    """A network; ``card`` is None if no run says how it was trained."""

    name: str
    network: nn.Module
    card: ModelCard | None = None


def build(name: str, classes: int) -> nn.Module:
    """A network by its name, freshly initialised from torch's random state.

    Raises:
        InputError: an unknown name, or a depth that is not 6n+4.

    Example:
        >>> type(build("nin-thin-nobn", classes=10)).__name__
        'NetworkInNetwork'
    """
    base = name.removesuffix("-nobn")
    batch_norm = base == name
    wide_resnet = re.fullmatch(r"wrn-(\d{1,4})-(\d{1,3})", base)
    if wide_resnet:
        depth, width = map(int, wide_resnet.groups())
        return WideResNet(depth, width, classes, batch_norm=batch_norm)
    if base in ("nin-thin", "nin-wide"):
        return NetworkInNetwork(base.removeprefix("nin-"), classes, batch_norm=batch_norm)
    raise InputError(
        f"unknown model {name!r}; {nearest(name, EXAMPLES)} "
        "(wrn-DEPTH-WIDTH, nin-thin or nin-wide, each also with -nobn; or the folder of a run)"
    )


def load(model: str, classes: int, *, trained: bool, seed: int = 0) -> LoadedModel:
    """A MODEL as users write it.

    Args:
        model: see the module's docstring.
        classes: how many classes a new network is to tell apart.
        trained: True refuses a bare name, because it would have no trained weights.
        seed: of the random initialisation.

    Raises:
        InputError: an unknown model; no trained weights where they are needed; weights that do
            not fit, or are not safetensors.
    """
    if os.path.isdir(model):
        return load_run(Path(model))
    name, _, weights = model.partition("@")
    network = _seeded(name, classes, seed)
    if weights == "random" or (not weights and not trained):
        return LoadedModel(name, network)
    if not weights or weights == "pretrained":
        raise InputError(
            f"{name} has no pretrained weights; give the folder of a run (train one with "
            f"'attention-transfer train --model {name}'), {name}@FILE.safetensors, "
            f"or {name}@random if you mean an untrained network"
        )
    load_weights(network, Path(weights))
    return LoadedModel(name, network)


def load_run(folder: str | Path) -> LoadedModel:
    """The network that a run trained, with its card.

    Raises:
        InputError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "model.json"):
        raise InputError(
            f"{folder} holds no trained network (no model.json); expected the folder of a "
            "finished run"
        )
    card = ModelCard.read(folder / "model.json")
    network = build(card.name, card.classes)
    load_weights(network, folder / "model.safetensors")
    return LoadedModel(card.name, network, card)


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a network; nothing in the file is run.

    Raises:
        InputError: the file is missing, is not safetensors, or does not fit the network.
    """
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}; expected a .safetensors file")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); pickled weights are not loaded, "
            "because they can run code: save them with safetensors.torch.save_file"
        ) from None
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not of this network" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {_first(problems)}; "
            "give weights of the same architecture and class count"
        )
    network.load_state_dict(weights)


def _seeded(name: str, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(name, classes)


def _first(problems: Sequence[str], count: int = 3) -> str:
    more = f" and {len(problems) - count} more" if len(problems) > count else ""
    return "; ".join(problems[:count]) + more
