"""Networks by the MODEL names that users write.

MODEL is ``NAME``, ``NAME@random``, ``NAME@pretrained``, ``NAME@FILE.safetensors`` or a run folder.
NAME is ``wrn-d-k``, ``nin-thin`` or ``nin-wide``, each also with ``-nobn`` (no batch norm);
``timm:NAME``; ``torchvision:NAME``; or ``package.module:factory``.
"""

import os
import re
from collections.abc import Iterable, Iterator
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
from attention_transfer.models.card import ModelCard, check_weights
from attention_transfer.models.channels import input_channels
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
from attention_transfer.trust import check_names, trusting

__all__ = [
    "LoadedModel",
    "ModelStructure",
    "build",
    "default_input_size",
    "load",
    "load_run",
    "load_weights",
    "model_structure",
    "read_card",
    "split_models",
]

EXAMPLES = ("wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2", "nin-thin", "nin-wide")


@dataclass(frozen=True)
class LoadedModel:
    """A network, with what is known of its training."""

    name: str
    network: nn.Module
    card: ModelCard | None = None
    """The model card of the run that trained it; None: no run did."""
    preprocessing: Preprocessing | None = None
    """The preprocessing that its trained weights expect; None: that of the data set."""


class ModelStructure(NamedTuple):
    """A network without its trained weights, and the size of its images."""

    name: str
    network: nn.Module
    input_size: tuple[int, int, int]
    """Channels, height and width."""


def build(name: str, classes: int | None, image_size: ImageSize | None = None) -> nn.Module:
    """Build a network by its name, initialised from torch's random state.

    Args:
        name: NAME in the module's docstring, without ``@``.
        classes: number of classes; None: the network's default (ours: 10).
        image_size: height and width in pixels, for a network of fixed input size.

    Raises:
        InputError: an unknown name, or settings that the network does not take.

    Example:
        >>> type(build("nin-thin-nobn", classes=10)).__name__
        'NetworkInNetwork'
    """
    zoo_model = _zoo_model(name)
    if zoo_model is not None:
        return zoo_model.build(classes, image_size)
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
    trust: Iterable[str] = (),
) -> LoadedModel:
    """Load the network that a MODEL names.

    Args:
        model: see the module's docstring.
        classes: number of classes of a new network; None: that of the weights, or the network's
            default. Weights for another number of classes keep their last layer if ``trained``;
            otherwise it is replaced by a new one.
        trained: True for a teacher or an evaluation: a zoo's bare name means its pretrained
            weights, and a name without trained weights is refused.
        seed: seed of the random initialisation.
        image_size: height and width in pixels of the images that a network is to be trained on;
            ``trained`` networks keep those of their weights.
        trust: factories, as ``package.module:factory``, that the card of a run may name.

    Raises:
        InputError: an unknown model; no trained weights where they are needed; weights that do
            not fit, are damaged, or are not safetensors.
        UntrustedError: a run's card names code that is not trusted.
    """
    if os.path.isdir(model):
        loaded = load_run(Path(model), trust)
        card = loaded.card
        if trained or card is None:
            return loaded
        if classes is not None and card.classes != classes:
            with _seeded(seed):
                replace_head(loaded.network, classes, card.input_size)
        size = image_size or card.preprocessing.size
        return replace(loaded, preprocessing=card.preprocessing._replace(size=size))
    name, _, weights = model.partition("@")
    with _seeded(seed):
        return _load_named(name, weights, classes, trained, image_size)


def _load_named(
    name: str, weights: str, classes: int | None, trained: bool, image_size: ImageSize | None
) -> LoadedModel:
    """Load ``NAME@WEIGHTS``, where the weights may be empty."""
    zoo_model = _zoo_model(name)
    if isinstance(zoo_model, Factory) and weights in ("", "random"):
        return LoadedModel(name, zoo_model.build(classes))
    if weights == "random" or (not weights and not trained):
        return LoadedModel(name, build(name, classes, image_size))
    size = None if trained else image_size
    preprocessing = None
    if zoo_model is not None and zoo_model.has_pretrained:
        preprocessing = zoo_model.preprocessing()
        preprocessing = preprocessing._replace(size=size or preprocessing.size)
    if weights not in ("", "pretrained"):
        network = _with_weights_of_file(name, Path(weights), classes, trained, size)
        return LoadedModel(name, network, preprocessing=preprocessing)
    if zoo_model is None:
        with torch.device("meta"):
            build(name, classes)  # refuses an unknown name
    if zoo_model is None or preprocessing is None:
        raise InputError(
            f"{name} has no pretrained weights; give the folder of a run (train one with "
            f"'attention-transfer train --model {name}'), {name}@FILE.safetensors, "
            f"or {name}@random if you mean an untrained network"
        )
    network = zoo_model.build(None if trained else classes, size, pretrained=True)
    return LoadedModel(name, network, preprocessing=preprocessing)


def split_models(models: str) -> list[str]:
    """Split MODELs at commas, unless all of it is the path of a folder.

    >>> split_models("wrn-16-2, timm:resnet34")
    ['wrn-16-2', 'timm:resnet34']
    """
    return [models] if os.path.isdir(models) else [name.strip() for name in models.split(",")]


def model_structure(
    model: str, image_size: ImageSize | None = None, *, values: bool = False
) -> ModelStructure:
    """Build a MODEL without its weights on torch's meta device, almost without memory.

    Args:
        model: see the module's docstring; what comes after ``@`` is ignored.
        image_size: height and width of its images in pixels; None: the model's default.
        values: build it with random weights in memory, for a network whose computation depends on
            values.

    Raises:
        InputError: an unknown model.
    """
    if os.path.isdir(model):
        card = read_card(Path(model))
        name, classes = card.name, card.classes
    else:
        name, classes = model.partition("@")[0], None
    channels, *default_size = default_input_size(model)
    height, width = image_size or default_size
    try:
        with torch.device("cpu" if values else "meta"):
            network = build(name, classes, (height, width))
    except InputError as error:
        if error.__cause__ is None:
            raise
        network = build(name, classes, (height, width))  # its constructor needs real values
    channels = input_channels(network, (height, width), channels)
    return ModelStructure(name, network, (channels, height, width))


def default_input_size(model: str) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a MODEL is made for.

    Raises:
        InputError: an unknown model.
    """
    if os.path.isdir(model):
        return read_card(Path(model)).input_size
    zoo_model = _zoo_model(model.partition("@")[0])
    return (3, 32, 32) if zoo_model is None else zoo_model.input_size


def load_run(folder: str | Path, trust: Iterable[str] = ()) -> LoadedModel:
    """Load the network that a run trained, with its card.

    Args:
        folder: of the run.
        trust: factories, as ``package.module:factory``, that the card may name.

    Raises:
        InputError: the folder holds no finished run, or its weights are damaged.
        UntrustedError: the card names code that is not trusted.
    """
    folder = Path(folder)
    with trusting(trust):
        card = read_card(folder)
    path = folder / "model.safetensors"
    weights = _read_weights(path)
    if not isinstance(_zoo_model(card.name), Factory):
        # Before it takes memory: a card may name any size of network.
        _check_fit(model_structure(str(folder)).network, weights, path)
    network = build(card.name, card.classes, card.input_size[1:])
    _put(weights, network, path)
    return LoadedModel(card.name, network, card, card.preprocessing)


def read_card(folder: Path) -> ModelCard:
    """Read the card of the network that a run trained.

    Raises:
        InputError: the folder holds no finished run.
        UntrustedError: the card names a network that is no part of this package or of a zoo.
    """
    if not os.path.isfile(folder / "model.json"):
        raise InputError(
            f"{folder} holds no trained network (no model.json); expected the folder of a "
            "finished run"
        )
    card = ModelCard.read(folder / "model.json")
    check_names(folder / "model.json", network=card.name)
    return card


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file into a network; no code in the file is run.

    Raises:
        InputError: the file is missing or damaged, is not safetensors, or does not fit the network.
    """
    _put(_read_weights(path), network, path)


def _put(weights: dict[str, Tensor], network: nn.Module, path: Path) -> None:
    """Put weights into a network; the path is for the error message."""
    _check_fit(network, weights, path)
    network.load_state_dict(weights)


def _check_fit(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    problems = _mismatches(network, weights)
    if problems:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {first_problems(problems)}; "
            "give weights of the same architecture, class count and input size"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; that of a run has its checksum in the card beside it."""
    if not os.path.isfile(path):
        raise InputError(f"no weights at {path}; expected a .safetensors file")
    try:
        check_weights(path)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); pickled weights are not loaded, "
            "because they can run code: save them with safetensors.torch.save_file"
        ) from None


def _mismatches(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Return how weights differ from a network's in names and shapes."""
    expected = network.state_dict()
    return [
        *(f"{name} is missing" for name in expected if name not in weights),
        *(f"{name} is not of this network" for name in weights if name not in expected),
        *(
            f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and not is_lazy(value) and weights[name].shape != value.shape
        ),
    ]


def _with_weights_of_file(
    name: str, path: Path, classes: int | None, trained: bool, image_size: ImageSize | None
) -> nn.Module:
    """Build a network with the weights of a file, which may be for the zoo's default classes."""
    network, weights = build(name, classes, image_size), _read_weights(path)
    zoo_model = _zoo_model(name)
    if classes is None and _mismatches(network, weights):
        count = _class_count(weights, network, default_input_size(name))
        network = build(name, count, image_size)
    elif zoo_model is not None and _mismatches(network, weights):
        default = build(name, None, image_size)
        if not _mismatches(default, weights):
            _put(weights, default, path)
            if not trained and classes is not None:
                replace_head(default, classes, (3, *(image_size or zoo_model.input_size[1:])))
            return default
    _put(weights, network, path)
    return network


def _class_count(
    weights: dict[str, Tensor], network: nn.Module, size: tuple[int, int, int]
) -> int | None:
    """Return the number of classes that weights have in the network's last layer."""
    heads = [f"{name}.weight" for name in logit_layers(network, size)]
    return next((len(weights[head]) for head in heads if head in weights), None)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _zoo_model(name: str) -> ZooModel | None:
    """Return the zoo's network or factory that a name means; None: one of ours."""
    source, colon, rest = name.partition(":")
    if not colon:
        return None
    zoos: dict[str, type[ZooModel]] = {"timm": TimmModel, "torchvision": TorchvisionModel}
    return zoos[source](rest) if source in zoos else Factory(name)
