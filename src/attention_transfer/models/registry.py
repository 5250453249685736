"""From a MODEL as users write it to a network.

``NAME``, ``NAME@random``, ``NAME@pretrained``, ``NAME@FILE.safetensors`` or a run's folder. NAME is
``wrn-d-k``, ``nin-thin`` or ``nin-wide``, each also with ``-nobn`` (no batch norm); ``timm:NAME``;
``torchvision:NAME``; or ``package.module:factory``.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attention_transfer.errors import InputError, first_problems, nearest
from attention_transfer.models.card import ModelCard
from attention_transfer.models.heads import logit_layers, replace_head
from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.wide_resnet import WideResNet
from attention_transfer.models.zoo import (
    Factory,
    ImageSize,
    TimmModel,
    TorchvisionModel,
    ZooModel,
)
from attention_transfer.preprocessing import Preprocessing

__all__ = [
    "LoadedModel",
    "Outline",
    "build",
    "load",
    "load_run",
    "load_weights",
    "outline",
    "own_input_size",
    "several",
]

EXAMPLES = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "nin-thin", "nin-wide")


@dataclass(frozen=True)
class LoadedModel:
    """A network; ``card`` is None if no run says how it was trained."""

    name: str
    network: nn.Module
    card: ModelCard | None = None
    preprocessing: Preprocessing | None = None
    """What its trained weights expect of images; None: what the data set says."""


class Outline(NamedTuple):
    """A network without its weights, and the size of its images."""

    name: str
    network: nn.Module
    input_size: tuple[int, int, int]


def build(name: str, classes: int | None, image_size: ImageSize | None = None) -> nn.Module:
    """A network by its name, freshly initialised from torch's random state.

    Args:
        name: see the module's docstring; without ``@``.
        classes: how many it tells apart; None: as many as it does by itself (ours: 10).
        image_size: height and width, for a network that is made for one size.

    Raises:
        InputError: an unknown name, or one that cannot be built so.

    Example:
        >>> type(build("nin-thin-nobn", classes=10)).__name__
        'NetworkInNetwork'
    """
    zoo = _zoo(name)
    if zoo is not None:
        return zoo.build(classes, image_size)
    classes = 10 if classes is None else classes
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
        "(wrn-DEPTH-WIDTH, nin-thin or nin-wide, each also with -nobn; timm:NAME; "
        "torchvision:NAME; package.module:factory; or the folder of a run)"
    )


def load(
    model: str,
    classes: int | None,
    *,
    trained: bool,
    seed: int = 0,
    image_size: ImageSize | None = None,
) -> LoadedModel:
    """A MODEL as users write it.

    Args:
        model: see the module's docstring.
        classes: how many classes a new network is to tell apart. Weights for other classes keep
            theirs if ``trained``, and get a new last layer if not. None: as many as there are
            weights for, or as many as the network tells apart by itself.
        trained: True takes a zoo's bare name with its pretrained weights, and refuses the name of
            a network that has none.
        seed: of the random initialisation.
        image_size: height and width of the images that a network which is to learn will get;
            ``trained`` networks get them in their own.

    Raises:
        InputError: an unknown model; no trained weights where they are needed; weights that do
            not fit, or are not safetensors.
    """
    if os.path.isdir(model):
        found = load_run(Path(model))
        if trained or found.card is None:
            return found
        if classes is not None and found.card.classes != classes:
            with _seeded(seed):
                replace_head(found.network, classes, found.card.input_size)
        return replace(found, preprocessing=_at_size(found.card.preprocessing, image_size))
    name, _, weights = model.partition("@")
    with _seeded(seed):
        return _load_named(name, weights, classes, trained, image_size)


def _load_named(
    name: str, weights: str, classes: int | None, trained: bool, image_size: ImageSize | None
) -> LoadedModel:
    zoo = _zoo(name)
    size = None if trained else image_size
    if isinstance(zoo, Factory) and weights in ("", "random"):
        return LoadedModel(name, zoo.build(classes))
    if weights == "random" or (not weights and not trained):
        return LoadedModel(name, build(name, classes, image_size))
    if weights in ("", "pretrained"):
        if zoo is None:
            with torch.device("meta"):
                build(name, classes)  # refuses an unknown name
        if zoo is None or not zoo.has_pretrained:
            raise InputError(
                f"{name} has no pretrained weights; give the folder of a run (train one with "
                f"'attention-transfer train --model {name}'), {name}@FILE.safetensors, "
                f"or {name}@random if you mean an untrained network"
            )
        network = zoo.build(None if trained else classes, size, pretrained=True)
        return LoadedModel(name, network, preprocessing=_at_size(zoo.preprocessing(), size))
    network = _fitting(name, Path(weights), classes, trained, size)
    spec = _at_size(zoo.preprocessing(), size) if zoo and zoo.has_pretrained else None
    return LoadedModel(name, network, preprocessing=spec)


def several(models: str) -> list[str]:
    """MODELs that are separated by commas; a folder may have some in its name.

    >>> several("wrn-16-2, timm:resnet34")
    ['wrn-16-2', 'timm:resnet34']
    """
    return [models] if os.path.isdir(models) else [name.strip() for name in models.split(",")]


def outline(model: str, image_size: ImageSize | None = None, *, values: bool = False) -> Outline:
    """A MODEL's structure, without weights and almost without memory (on torch's meta device).

    Args:
        model: see the module's docstring; what comes after ``@`` does not matter.
        image_size: height and width of its images; by default its own.
        values: with random weights in memory, for a network that looks at values.

    Raises:
        InputError: an unknown model.
    """
    if os.path.isdir(model):
        card = _card(Path(model))
        name, classes = card.name, card.classes
    else:
        name, classes = model.partition("@")[0], None
    own = own_input_size(model)
    size = image_size or own[1:]
    try:
        with torch.device("cpu" if values else "meta"):
            network = build(name, classes, size)
    except InputError as error:
        if error.__cause__ is None:
            raise
        network = build(name, classes, size)  # needs real numbers to be built
    return Outline(name, network, (own[0], *size))


def own_input_size(model: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that a MODEL is made for.

    Raises:
        InputError: an unknown model.
    """
    if os.path.isdir(model):
        return _card(Path(model)).input_size
    zoo = _zoo(model.partition("@")[0])
    return (3, 32, 32) if zoo is None else zoo.input_size


def load_run(folder: str | Path) -> LoadedModel:
    """The network that a run trained, with its card.

    Raises:
        InputError: the folder holds no finished run.
    """
    folder = Path(folder)
    card = _card(folder)
    network = build(card.name, card.classes, card.input_size[1:])
    load_weights(network, folder / "model.safetensors")
    return LoadedModel(card.name, network, card, card.preprocessing)


def _card(folder: Path) -> ModelCard:
    if not os.path.isfile(folder / "model.json"):
        raise InputError(
            f"{folder} holds no trained network (no model.json); expected the folder of a "
            "finished run"
        )
    return ModelCard.read(folder / "model.json")


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a network; nothing in the file is run.

    Raises:
        InputError: the file is missing, is not safetensors, or does not fit the network.
    """
    weights = _read_weights(path)
    problems = _misfits(network, weights)
    if problems:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {first_problems(problems)}; "
            "give weights of the same architecture, class count and input size"
        )
    network.load_state_dict(weights)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}; expected a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); pickled weights are not loaded, "
            "because they can run code: save them with safetensors.torch.save_file"
        ) from None


def _misfits(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    own = network.state_dict()
    return [
        *(f"{name} is missing" for name in own if name not in weights),
        *(f"{name} is not of this network" for name in weights if name not in own),
        *(
            f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in weights and not is_lazy(own[name]) and weights[name].shape != own[name].shape
        ),
    ]


def _fitting(
    name: str, path: Path, classes: int | None, trained: bool, image_size: ImageSize | None
) -> nn.Module:
    """A network with the weights of a file, which may be for the zoo's own classes."""
    network = build(name, classes, image_size)
    zoo = _zoo(name)
    if classes is None and _misfits(network, _read_weights(path)):
        network = build(name, _classes_of(path, network, own_input_size(name)), image_size)
    elif zoo is not None and _misfits(network, _read_weights(path)):
        own = build(name, None, image_size)
        if not _misfits(own, _read_weights(path)):
            load_weights(own, path)
            if not trained and classes is not None:
                replace_head(own, classes, (3, *(image_size or zoo.input_size[1:])))
            return own
    load_weights(network, path)
    return network


def _classes_of(path: Path, network: nn.Module, size: tuple[int, int, int]) -> int | None:
    """How many classes a file has weights for in the layer that gives a network's logits."""
    weights = _read_weights(path)
    heads = [f"{name}.weight" for name in logit_layers(network, size)]
    return next((len(weights[head]) for head in heads if head in weights), None)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed; torch's generator goes on afterwards as if never touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _zoo(name: str) -> ZooModel | None:
    """Whose network a name means; None: ours."""
    source, colon, rest = name.partition(":")
    if not colon:
        return None
    known: dict[str, type[ZooModel]] = {"timm": TimmModel, "torchvision": TorchvisionModel}
    return known[source](rest) if source in known else Factory(name)


def _at_size(preprocessing: Preprocessing, size: ImageSize | None) -> Preprocessing:
    return preprocessing if size is None else preprocessing._replace(size=size)
