"""Networks by the MODEL names that users write.

MODEL is ``NAME``, ``NAME@random``, ``NAME@pretrained``, ``NAME@FILE``, ``NAME@FILE#KEY`` (one of
several state dicts) or a run folder. FILE is of safetensors, ``torch.save`` or ``torch.jit.save``.
NAME is ``wrn-d-k``, ``nin-thin`` or ``nin-wide``, each also with ``-nobn`` (no batch norm);
``timm:NAME``; ``torchvision:NAME``; or ``package.module:factory``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.model_names import run_folder, split_name, weights_file
from attention_transfer.models.building import build, zoo_model
from attention_transfer.models.card import ModelCard
from attention_transfer.models.channels import input_channels
from attention_transfer.models.file_heads import fitted_with_head, head_names
from attention_transfer.models.fitting import check_fit, fitted, put
from attention_transfer.models.heads import replace_head
from attention_transfer.models.weight_files import StoredWeights, read_weights
from attention_transfer.models.zoo import Factory, ImageSize
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.trust import check_names, trusting
from attention_transfer.waiting import waiting_for

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
]


@dataclass(frozen=True)
class LoadedModel:
    """A network, with what is known of its training."""

    name: str
    network: nn.Module
    card: ModelCard | None = None
    """The model card of the run that trained it; None: no run did."""
    preprocessing: Preprocessing | None = None
    """The preprocessing that its trained weights expect; None: that of the data set."""
    notices: tuple[str, ...] = ()
    """Lines that a user should read about how its weights were loaded."""


class ModelStructure(NamedTuple):
    """A network without its trained weights, and the size of its images."""

    name: str
    network: nn.Module
    input_size: tuple[int, int, int]
    """Channels, height and width."""


def load(
    model: str,
    classes: int | None,
    *,
    trained: bool,
    seed: int = 0,
    image_size: ImageSize | None = None,
    resize: bool = False,
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
        resize: build ``trained`` networks for ``image_size`` too; positions are interpolated.
        trust: factories, as ``package.module:factory``, that the card of a run may name.

    Raises:
        InputError: an unknown model; no trained weights where they are needed; weights that do
            not fit, are damaged, or can only be read by running code.
        UntrustedError: a run's card names code that is not trusted.
    """
    folder = run_folder(model)
    size = image_size if resize or not trained else None
    if folder is not None:
        with waiting_for(f"loading the network {model}"):
            loaded = load_run(folder, trust, image_size=size)
        card = loaded.card
        if not trained and card is not None and classes is not None and card.classes != classes:
            with _seeded(seed):
                replace_head(loaded.network, classes, (3, *(image_size or card.input_size[1:])))
        return loaded
    name, weights = split_name(model)
    if weights == "random":
        size = image_size
    with _seeded(seed), waiting_for(f"loading the network {model}"):
        return _load_named(name, weights, classes, trained, size)


def _load_named(
    name: str, weights: str, classes: int | None, trained: bool, image_size: ImageSize | None
) -> LoadedModel:
    """Load ``NAME@WEIGHTS``, where the weights may be empty."""
    zoo = zoo_model(name)
    if isinstance(zoo, Factory) and weights in ("", "random"):
        network = zoo.build(classes)
        return LoadedModel(name, network, notices=tuple(zoo.notices))
    if weights == "random" or (not weights and not trained):
        return LoadedModel(name, build(name, classes, image_size))
    preprocessing = None
    if zoo is not None and zoo.has_pretrained:
        preprocessing = zoo.preprocessing()
        preprocessing = preprocessing._replace(size=image_size or preprocessing.size)
    if weights not in ("", "pretrained"):
        network, notices = _with_weights_of_file(name, weights, classes, trained, image_size)
        return LoadedModel(name, network, preprocessing=preprocessing, notices=tuple(notices))
    if zoo is None:
        with torch.device("meta"):
            build(name, classes)  # refuses an unknown name
    if zoo is None or preprocessing is None:
        raise InputError(
            f"{name} has no pretrained weights; give the folder of a run (train one with "
            f"'attention-transfer train --model {name}'), {name}@FILE.safetensors "
            f"(or .pth), or {name}@random if you mean an untrained network"
        )
    network = zoo.build(None if trained else classes, image_size, pretrained=True)
    return LoadedModel(name, network, preprocessing=preprocessing)


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
    folder, classes = run_folder(model), None
    if folder is not None:
        card = read_card(folder)
        name, classes = card.name, card.classes
    else:
        name, _ = split_name(model)
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
    folder = run_folder(model)
    if folder is not None:
        return read_card(folder).input_size
    zoo = zoo_model(split_name(model)[0])
    return (3, 32, 32) if zoo is None else zoo.input_size


def load_run(
    folder: str | Path, trust: Iterable[str] = (), *, image_size: ImageSize | None = None
) -> LoadedModel:
    """Load the network that a run trained, with its card, in eval mode.

    Args:
        folder: of the run.
        trust: factories, as ``package.module:factory``, that the card may name.
        image_size: height and width in pixels to build the network for; None: the run's.

    Raises:
        InputError: the folder holds no finished run, or its weights are damaged.
        UntrustedError: the card names code that is not trusted.
    """
    folder = Path(folder)
    with trusting(trust):
        card = read_card(folder)
    path = folder / "model.safetensors"
    weights = read_weights(path).tensors
    if not isinstance(zoo_model(card.name), Factory):
        # Before it takes memory: a card may name any size of network.
        check_fit(model_structure(str(folder)).network, weights, path)
    size = image_size or card.input_size[1:]
    network = build(card.name, card.classes, size)
    if size != card.input_size[1:]:
        weights, _, _ = fitted(network, weights)
    check_fit(network, weights, path)
    put(weights, network)
    return LoadedModel(card.name, network.eval(), card, card.preprocessing._replace(size=size))


def read_card(folder: Path) -> ModelCard:
    """Read the card of the network that a run trained.

    Raises:
        InputError: the folder holds no finished run.
        UntrustedError: the card names a network that is no part of this package or of a zoo.
    """
    if not (folder / "model.json").is_file():
        raise InputError(
            f"{folder} holds no trained network (no model.json); expected the folder of a "
            "finished run"
        )
    card = ModelCard.read(folder / "model.json")
    check_names(folder / "model.json", network=card.name)
    return card


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file of weights into a network; no code in the file is run.

    Raises:
        InputError: the file is missing or damaged, cannot be read without running code, or does not
            fit the network.
    """
    weights, _, _ = fitted(network, read_weights(path).tensors)
    check_fit(network, weights, path)
    put(weights, network)


def _with_weights_of_file(
    name: str, file: str, classes: int | None, trained: bool, image_size: ImageSize | None
) -> tuple[nn.Module, list[str]]:
    """Build a network with the weights of ``FILE#KEY``, which may be for other classes.

    A trained network keeps its last layer; another gets a new one.
    """
    path, key = weights_file(file)
    stored = read_weights(path, key)
    size = (3, *(image_size or default_input_size(name)[1:]))
    network = build(name, classes, image_size)
    weights, differs, changes, other_head = fitted_with_head(network, stored.tensors, size)
    notices = [*stored.notices, *(f"weights of {path}: {line}" for line in changes)]
    if differs.names:
        head = head_names(network, size)
        count = next((len(weights[one]) for one in head if one in weights), None)
        if not differs.names <= set(head):
            _refuse(network, stored, path, weights)
        elif not trained and classes is not None:
            has = "has none" if count is None else f"is for {count} classes, not {classes}"
            has = f"is another ({', '.join(other_head)})" if other_head else has
            notices.append(f"{name} gets a new last layer: that of {path} {has}, and is left out")
            weights = {one: value for one, value in weights.items() if one not in head}
        elif other_head:
            raise InputError(
                f"the last layer in {path} ({', '.join(other_head)}) is another than that of "
                f"{name} ({', '.join(head)}); give a package.module:factory of the whole network"
            )
        elif count is None:
            raise InputError(
                f"{path} holds all of {name} but its last layer ({', '.join(head)}): a teacher "
                "with a random one teaches nothing; give weights with it, or train it first"
            )
        else:
            network = build(name, count, image_size)
            weights, differs, _, _ = fitted_with_head(network, stored.tensors, size)
            if differs.names:
                _refuse(network, stored, path, weights)
    put(weights, network)
    return network, notices


def _refuse(
    network: nn.Module, stored: StoredWeights, path: Path, weights: dict[str, Tensor]
) -> None:
    """Raise an InputError that says how weights do not fit."""
    try:
        check_fit(network, weights, path)
    except InputError as error:
        if not stored.program:
            raise
        raise InputError(
            f"{error}; a TorchScript program can itself only teach distillation: --teacher "
            f"package.module:factory, which returns torch.jit.load({str(path)!r}), with "
            "--attention none --kd-alpha 0.9"
        ) from None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
