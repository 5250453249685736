"""Networks to look through, whatever way they are given, under names that tell them apart."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.errors import InputError
from attention_transfer.models import (
    LoadedModel,
    default_input_size,
    imagenet_classes,
    load,
    timm_preprocessing,
)
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs.folder import Run
from attention_transfer.taps import unwrapped

__all__ = ["Network", "Networks", "NamedModel", "distinct", "from_model", "networks_of"]

Network = nn.Module | LoadedModel | Run | str | Path
"""A module, what ``at.models.load`` gives, a run or its folder, or a MODEL as users write it."""

Networks = Network | Sequence[Network] | Mapping[str, Network]


@dataclass(frozen=True)
class NamedModel:
    """A network, how to feed it, and what its classes are called."""

    name: str
    network: nn.Module
    normalization: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    model: str = ""
    """As it was given, where that is a text."""
    notice: str = ""
    """What was assumed of it."""
    certain: bool = False
    """Whether it is known how its images are to be normalised, and nobody need be asked."""

    def class_name(self, index: int, classes: int) -> str:
        """What to call a class of so many."""
        names = self.class_names
        return names[index] if names and len(names) == classes else f"class {index}"


def networks_of(networks: Networks) -> list[NamedModel]:
    """One network or several, each under a name of its own.

    Raises:
        InputError: there is none, or one that cannot be had.
    """
    if isinstance(networks, Mapping):
        found = [replace(_viewed(network), name=str(name)) for name, network in networks.items()]
    elif isinstance(networks, list | tuple):
        found = [_viewed(network) for network in networks]
    else:
        found = [_viewed(networks)]  # type: ignore[arg-type]
    if not found:
        raise InputError("got no networks, expected at least one")
    names = distinct([one.name for one in found], [one.model for one in found])
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _viewed(network: Network) -> NamedModel:
    if isinstance(network, str | Path):
        return from_model(str(network))
    if isinstance(network, Run):
        return from_model(str(network.folder))
    if isinstance(network, LoadedModel):
        return _from_loaded(network, network.name)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"got a {type(network).__name__}, expected a network: a torch.nn.Module, a run, or a "
            "MODEL such as 'timm:resnet18'"
        )
    spec = timm_preprocessing(unwrapped(network))
    return NamedModel(
        type(unwrapped(network)).__name__,
        network,
        spec,
        imagenet_classes() if spec else None,
    )


def from_model(model: str) -> NamedModel:
    """A MODEL as users write it, with trained weights where it does not say otherwise.

    Raises:
        InputError: an unknown model, or one without weights.
    """
    return replace(_from_loaded(load(model, None, trained=True), model), model=model)


def _from_loaded(found: LoadedModel, model: str) -> NamedModel:
    spec, notice = found.preprocessing or timm_preprocessing(unwrapped(found.network)), ""
    if spec is None:
        spec = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, default_input_size(model)[1:])
    if found.preprocessing is None and not model.endswith("@random"):
        notice = (
            f"{model} does not say how its images are normalised; done as for most photographs, "
            "with ImageNet's mean and standard deviation"
        )
    names = None
    if found.card is not None:
        names = found.card.class_names
    elif found.preprocessing is not None:
        names = imagenet_classes()
    own = spec
    certain = found.preprocessing is not None
    return NamedModel(_short(model), found.network, own, names, notice=notice, certain=certain)


def _short(model: str) -> str:
    """What a MODEL is called in a picture: a run by its folder's name, a zoo's by its own.

    >>> _short("timm:resnet18@runs/a/weights.safetensors"), _short("wrn-16-1@random")
    ('resnet18', 'wrn-16-1@random')
    """
    if os.path.isdir(model):
        return Path(model).resolve().name or model
    name, _, weights = model.partition("@")
    source, _, rest = name.partition(":")
    short = rest if source in ("timm", "torchvision") else name
    return f"{short}@random" if weights == "random" else short


def distinct(names: Sequence[str], whole: Sequence[str]) -> list[str]:
    """Names of which no two are alike: where some are, the whole ones if those differ; else with
    numbers.

    >>> distinct(["at", "at", "b"], ["runs/1/at", "runs/2/at", "b"])
    ['runs/1/at', 'runs/2/at', 'b']
    >>> distinct(["ResNet", "ResNet"], ["", ""])
    ['ResNet', 'ResNet (2)']
    """
    pairs = list(zip(names, whole, strict=True))
    often, often_whole = Counter(names), Counter(pairs)
    repeated = {name for name, full in pairs if often_whole[name, full] > 1 or not full}
    chosen = [full if often[name] > 1 and name not in repeated else name for name, full in pairs]
    taken: set[str] = set()
    for place, name in enumerate(chosen):
        number = 1
        while chosen[place] in taken:
            number += 1
            chosen[place] = f"{name} ({number})"
        taken.add(chosen[place])
    return chosen
