"""Networks in any form that users have them, with distinct names and their preprocessing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.views import CENTRE_SHARE
from attention_transfer.errors import InputError, first_line
from attention_transfer.functional.maps import to_float32
from attention_transfer.models import (
    LoadedModel,
    class_probabilities,
    default_input_size,
    imagenet_classes,
    input_channels,
    load,
    run_folder,
    split_name,
    timm_preprocessing,
)
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs import Run
from attention_transfer.taps import unwrapped

__all__ = ["NamedModel", "Network", "Networks", "distinct_names", "named_models"]


class Trained(Protocol):
    """What ``at.load`` returns, as far as it is needed here."""

    @property
    def model(self) -> "NamedModel":
        """The network with its preprocessing."""


Network = nn.Module | LoadedModel | Trained | Run | str | Path
"""A module, the result of ``at.load`` or ``at.models.load``, a run or its folder, or a MODEL as
users write it.
"""

PROBE_SIZE = (64, 64)
"""Height and width of an image that tells how many channels a network of any input size takes."""

Networks = Network | Sequence[Network] | Mapping[str, Network]


@dataclass(frozen=True)
class NamedModel:
    """A network with the name to display, its preprocessing and its class names."""

    name: str
    network: nn.Module
    preprocessing: Preprocessing | None = None
    """None: images are used as they are."""
    class_names: tuple[str, ...] | None = None
    model: str = ""
    """The MODEL that the user wrote; empty for a module."""
    notices: tuple[str, ...] = ()
    """What the user should know of how the network was loaded, and of what is assumed about it."""
    declares_preprocessing: bool = False
    """Whether the network itself says how its images are preprocessed."""
    channels: int = 3
    """That the network takes."""
    crop_share: float = CENTRE_SHARE
    """See :class:`attention_transfer.models.ModelCard`."""
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    """Of the logits."""

    @property
    def image_channels(self) -> int:
        """The channels that images are read with: colours for networks of 1 and 3 channels."""
        return 3 if self.channels in (1, 3) else self.channels

    def with_preprocessing(self, preprocessing: Preprocessing | None) -> "NamedModel":
        """Return the network with another preprocessing, brought to its channels."""
        if self.channels != 3:
            plain = Preprocessing((0.0,) * self.channels, (1.0,) * self.channels)
            preprocessing = (preprocessing or plain).for_channels(self.channels)
        return replace(self, preprocessing=preprocessing)

    def class_name(self, label: int, classes: int) -> str:
        """Return the name of a class, or its number if the names do not fit so many classes."""
        names = self.class_names
        return names[label] if names and len(names) == classes else f"class {label}"

    @contextmanager
    def running_on(self, images: Tensor) -> Iterator[Tensor]:
        """Yield images (N, C, H, W) on the network's device; what fails there is an InputError."""
        weights = (value for value in self.network.parameters() if value.is_floating_point())
        try:
            yield images.to(next(weights, images).device)
        except InputError:
            raise
        except Exception as error:
            height, width = images.shape[-2:]
            raise InputError(
                f"{self.name} does not run on images {height}x{width} ({type(error).__name__}: "
                f"{first_line(error)}); give images of the size that it expects"
            ) from error

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probabilities (N, K) of logits (N, K), in at least float32."""
        return class_probabilities(to_float32(logits), self.probabilities)


def named_models(networks: Networks, image_size: tuple[int, int] | None = None) -> list[NamedModel]:
    """Load one network or several, and give each a name of its own.

    Args:
        networks: in any form.
        image_size: height and width of the images that networks with a name are built for; None:
            each network's own.

    Raises:
        InputError: there are no networks, or one cannot be loaded.
    """
    if isinstance(networks, Mapping):
        loaded = {str(name): _named(one, image_size) for name, one in networks.items()}
        models = [replace(model, name=name) for name, model in loaded.items()]
    elif isinstance(networks, list | tuple):
        models = [_named(network, image_size) for network in networks]
    else:
        models = [_named(networks, image_size)]  # type: ignore[arg-type]
    if not models:
        raise InputError("got no networks, expected at least one")
    models = [_with_channels(model) for model in models]
    names = distinct_names([model.name for model in models], [model.model for model in models])
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]


def _with_channels(model: NamedModel) -> NamedModel:
    """Return the network with the number of channels that it takes."""
    size = (model.preprocessing.size if model.preprocessing else None) or PROBE_SIZE
    channels = input_channels(unwrapped(model.network), size)
    return replace(model, channels=channels).with_preprocessing(model.preprocessing)


def _named(network: Network, image_size: tuple[int, int] | None) -> NamedModel:
    """Load one network in any of its forms."""
    if isinstance(network, Run):
        network = network.folder
    if isinstance(network, str | Path):
        model = str(network)
        loaded = load(model, None, trained=True, image_size=image_size, resize=True)
        named = replace(_from_loaded(loaded, model), model=model)
        if image_size is None or named.preprocessing is None:
            return named
        return replace(named, preprocessing=named.preprocessing._replace(size=image_size))
    if isinstance(network, LoadedModel):
        return _from_loaded(network, network.name)
    trained = getattr(network, "model", None)
    if isinstance(trained, NamedModel):
        return trained
    if not isinstance(network, nn.Module):
        raise InputError(
            f"got a {type(network).__name__}, expected a network: a torch.nn.Module, a run, or a "
            "MODEL such as 'timm:resnet18'"
        )
    preprocessing = timm_preprocessing(unwrapped(network))
    names = imagenet_classes() if preprocessing else None
    return NamedModel(type(unwrapped(network)).__name__, network, preprocessing, names)


def _from_loaded(loaded: LoadedModel, model: str) -> NamedModel:
    """Return a loaded network, with ImageNet's preprocessing if it declares none."""
    preprocessing = loaded.preprocessing or timm_preprocessing(unwrapped(loaded.network))
    if preprocessing is None:
        preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, default_input_size(model)[1:])
    notices = loaded.notices
    if loaded.preprocessing is None and not model.endswith("@random"):
        notices += (
            f"{model} does not declare how its images are normalized; using ImageNet's mean and "
            "standard deviation",
        )
    names: tuple[str, ...] | None = None
    of_card: dict[str, Any] = {}
    if loaded.card is not None:
        names = loaded.card.class_names
        of_card = {name: getattr(loaded.card, name) for name in ("crop_share", "probabilities")}
    elif loaded.preprocessing is not None:
        names = imagenet_classes()
    return NamedModel(
        _short_name(model),
        loaded.network,
        preprocessing,
        names,
        notices=notices,
        declares_preprocessing=loaded.preprocessing is not None,
        **of_card,
    )


def _short_name(model: str) -> str:
    """Return a MODEL's name in a picture: a run's folder name, or the network's name in its zoo.

    >>> _short_name("timm:resnet18@runs/a/weights.safetensors"), _short_name("wrn-16-1@random")
    ('resnet18', 'wrn-16-1@random')
    """
    folder = run_folder(model)
    if folder is not None:
        return folder.resolve().name or model
    name, weights = split_name(model)
    source, _, rest = name.partition(":")
    short = rest if source in ("timm", "torchvision") else name
    return f"{short}@random" if weights == "random" else short


def distinct_names(names: Sequence[str], full_names: Sequence[str]) -> list[str]:
    """Make names distinct: repeated ones become their full names, or get a number.

    >>> distinct_names(["at", "at", "b"], ["runs/1/at", "runs/2/at", "b"])
    ['runs/1/at', 'runs/2/at', 'b']
    >>> distinct_names(["ResNet", "ResNet"], ["", ""])
    ['ResNet', 'ResNet (2)']
    """
    pairs = list(zip(names, full_names, strict=True))
    name_counts, pair_counts = Counter(names), Counter(pairs)
    # A full name helps only where no other network has both the same name and full name.
    ambiguous = {name for name, full in pairs if pair_counts[name, full] > 1 or not full}
    chosen = [
        full if name_counts[name] > 1 and name not in ambiguous else name for name, full in pairs
    ]
    used: set[str] = set()
    for index, name in enumerate(chosen):
        number = 1
        while chosen[index] in used:
            number += 1
            chosen[index] = f"{name} ({number})"
        used.add(chosen[index])
    return chosen
