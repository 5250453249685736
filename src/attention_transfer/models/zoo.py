"""Networks of model zoos: timm's, torchvision's, and those of users' factories."""

import inspect
import io
import os
import socket
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache, cached_property
from typing import Any, cast
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from torch import nn

from attention_transfer.config import Interpolation
from attention_transfer.errors import InputError, first_line, nearest
from attention_transfer.factories import import_object
from attention_transfer.models.fitting import fitted, put
from attention_transfer.models.heads import replace_head
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import as_teacher

__all__ = [
    "Factory",
    "TimmModel",
    "TorchvisionModel",
    "ZooModel",
    "imagenet_classes",
    "in_float32",
    "timm_preprocessing",
]

ImageSize = tuple[int, int]
"""Height and width in pixels."""


class ZooModel:
    """A network of a model zoo, by name.

    Args:
        name: without the zoo's prefix.

    Raises:
        InputError: the zoo has no such network.
    """

    has_pretrained = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.notices: list[str] = []
        """Lines that a user should read about a network that was built."""

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        """Build the network that the name means.

        Args:
            classes: number of classes; None: the network's default.
            image_size: height and width in pixels, for a network of fixed input size.
            pretrained: load the zoo's weights, fetched if they are not on the disk.

        Raises:
            InputError: it cannot be built so, or the weights cannot be fetched.
        """
        raise NotImplementedError

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that its pretrained weights expect."""
        raise NotImplementedError

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that its pretrained weights expect."""
        preprocessing = self.preprocessing()
        assert preprocessing.size is not None
        return len(preprocessing.mean), *preprocessing.size


class TimmModel(ZooModel):
    """A network of timm: ``timm:NAME``."""

    def __init__(self, name: str) -> None:
        source, colon, path = name.partition(":")
        super().__init__(f"{source}:{os.path.expanduser(path)}" if colon else name)
        import timm

        if ":" not in name and not timm.is_model(name):
            raise InputError(f"timm has no model {name!r}; {_nearest(name, timm.list_models())}")

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        import timm

        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if (
            image_size is not None
            and image_size != self.input_size[1:]
            and self._takes_image_size()
        ):
            options["img_size"] = image_size
        if not pretrained:
            return _built(f"timm:{self.name}", lambda: timm.create_model(self.name, **options))
        return _fetched(
            f"timm:{self.name}",
            lambda: self._reached(lambda: timm.create_model(self.name, pretrained=True, **options)),
        )

    def preprocessing(self) -> Preprocessing:
        import timm

        if ":" in self.name:  # of the hub or a folder, which hold the settings
            return _preprocessing_of(self._described_elsewhere.pretrained_cfg)  # type: ignore[arg-type]
        settings = timm.get_pretrained_cfg(self.name, allow_unregistered=True)
        return _preprocessing_of(vars(settings) if settings else {})

    @cached_property
    def _described_elsewhere(self) -> nn.Module:
        """The structure of a network that a ``config.json`` describes."""
        import timm

        def build() -> nn.Module:
            with torch.device("meta"):
                return timm.create_model(self.name)

        return _built(f"timm:{self.name}", lambda: self._reached(build))

    def _reached(self, create: Callable[[], Any]) -> nn.Module:
        """Create the network, from the hub only if its name does not say that it is elsewhere."""
        source, colon, _ = self.name.partition(":")
        if colon and source not in ("hf-hub", "hf_hub"):
            return cast(nn.Module, create())
        return _from_hub(create)

    def _takes_image_size(self) -> bool:
        """Return whether the network is built for one input size, as vision transformers are."""
        import timm

        try:
            with torch.device("meta"):
                timm.create_model(self.name, img_size=self.input_size[1:])
        except TypeError:
            return False
        except Exception:
            return True
        return True


class TorchvisionModel(ZooModel):
    """A network of torchvision: ``torchvision:NAME``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise InputError(f"torchvision has no model {name!r}; {_nearest(name, known)}")

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        from torchvision import models

        builder = models.get_model_builder(self.name)
        options = self._size_option(image_size)
        if classes is not None and not pretrained:
            options["num_classes"] = classes
        if self.name in _AUXILIARY and not pretrained:
            # init_weights=True is about to be torchvision's default, and warns until it is set.
            options |= {"aux_logits": False, "init_weights": True}
        if not pretrained:
            return _built(f"torchvision:{self.name}", lambda: builder(weights=None, **options))
        # Its builders refuse options beside weights, even those that the weights fit.
        network = _fetched(f"torchvision:{self.name}", lambda: builder(weights="DEFAULT"))
        if self.name in _AUXILIARY:
            _remove_auxiliary(network)
        if options and image_size not in (None, self.input_size[1:]):
            network = self._resized(network, image_size)
        if classes is not None:
            replace_head(network, classes, (3, *(image_size or self.input_size[1:])))
        return network

    def _size_option(self, image_size: ImageSize | None) -> dict[str, Any]:
        """Return the option of a builder whose network is for one input size."""
        height, width = image_size or self.input_size[1:]
        if self.name.startswith("maxvit"):
            return {"input_size": (height, width)}
        if not self.name.startswith("vit_"):
            return {}
        if height != width:
            raise InputError(
                f"torchvision:{self.name} could not be built for images {height}x{width}: it takes "
                f"square ones; give --image-size {height}, or a network of timm"
            )
        return {"image_size": height}

    def _resized(self, network: nn.Module, image_size: ImageSize | None) -> nn.Module:
        """Return a network for another input size with the same weights."""
        other = self.build(None, image_size)
        weights, differs, _ = fitted(other, network.state_dict())
        if differs.names:
            height, width = self.input_size[1:]
            raise InputError(
                f"the weights of torchvision:{self.name} are for images {height}x{width} "
                f"({differs.describe(other, weights)}); leave out --image-size"
            )
        put(weights, other)
        return other

    def preprocessing(self) -> Preprocessing:
        from torchvision import models

        transforms = models.get_model_weights(self.name).DEFAULT.transforms()
        (size,) = transforms.crop_size
        mean, std = transforms.mean, transforms.std
        if self.name in _AUXILIARY:  # what their transform_input makes of ImageNet's
            mean, std = [0.5] * 3, [0.5] * 3
        interpolation = _interpolation(transforms.interpolation.value)
        return Preprocessing(mean, std, (size, size), interpolation)


_AUXILIARY = ("inception_v3", "googlenet")
"""Networks of torchvision that, in training, return auxiliary logits beside the logits."""


def _remove_auxiliary(network: nn.Module) -> None:
    """Leave out auxiliary logits, and the normalization that is done before the network."""
    network.aux_logits = network.transform_input = False  # type: ignore[assignment]
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)


class Factory(ZooModel):
    """A user's function or class that returns a network: ``package.module:factory``.

    It is called with ``num_classes=`` (or ``classes=``) if it has that parameter. A network that it
    returns with trained weights keeps them.
    """

    has_pretrained = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.factory = import_object(name)

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        parameters = inspect.signature(self.factory).parameters
        keyword = next((name for name in ("num_classes", "classes") if name in parameters), None)
        options = {} if keyword is None or classes is None else {keyword: classes}
        network = _built(self.name, lambda: self.factory(**options))
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{self.name} returned a {type(network).__name__}, expected a torch.nn.Module"
            )
        network = as_teacher(network)
        self.notices = in_float32(network, self.name)
        return network

    def preprocessing(self) -> Preprocessing:
        return Preprocessing((0.0,) * 3, (1.0,) * 3, (224, 224))


def in_float32(network: nn.Module, name: str) -> list[str]:
    """Keep a network's weights as float32, in which runs compute, and return a line about it.

    >>> in_float32(nn.Linear(2, 2).half(), "own:network")
    ['own:network has weights of float16, which are kept as float32; --precision sets what is \
computed in']
    """
    tensors = [*network.parameters(), *network.buffers()]
    kinds = {one.dtype for one in tensors if one.is_floating_point()} - {torch.float32}
    if not kinds:
        return []
    network.float()
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return [
        f"{name} has weights of {names}, which are kept as float32; --precision sets what is "
        "computed in"
    ]


def timm_preprocessing(network: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that a network of timm names itself; None for other networks.

    Example:
        >>> import timm
        >>> timm_preprocessing(timm.create_model("mobilenetv3_small_050")).size
        (224, 224)
        >>> timm_preprocessing(nn.Identity()) is None
        True
    """
    settings = getattr(network, "pretrained_cfg", None)
    return _preprocessing_of(settings) if isinstance(settings, dict) else None


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, in the order of the zoos' logits.

    >>> imagenet_classes()[985]
    'daisy'
    """
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    names = (info.index_to_description(index) for index in range(info.num_classes()))  # type: ignore[no-untyped-call]
    return tuple(name.partition(",")[0] for name in names)


def _preprocessing_of(settings: dict[str, Any]) -> Preprocessing:
    """Convert timm's settings of pretrained weights."""
    from timm.data.config import resolve_data_config

    settings = settings or {"input_size": (3, 224, 224)}
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=settings)  # type: ignore[no-untyped-call]
    size, interpolation = config["input_size"][1:], _interpolation(config["interpolation"])
    return Preprocessing(config["mean"], config["std"], size, interpolation)


def _interpolation(name: str) -> Interpolation:
    """Return the nearest of our interpolations to a zoo's."""
    return "bicubic" if name == "bicubic" else "bilinear"


def _nearest(name: str, known: list[str]) -> str:
    """Suggest the nearest names, or those with the same beginning, or a few of a large zoo."""
    close = nearest(name, known)
    if close.startswith("did you mean"):
        return close
    similar = [other for other in known if other.startswith(name[:4])]
    return f"known: {', '.join((similar or known)[:8])}, ..."


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    """Call a builder of a network; any error becomes an InputError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast(nn.Module, build())
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{name} could not be built: {type(error).__name__}: {reason}") from error


def _from_hub(create: Callable[[], Any]) -> nn.Module:
    """Create a timm network with weights from the disk, or else from the hub if it is reachable.

    Without a network connection, the hub's library would retry for most of a minute.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return cast(nn.Module, create())
    except Exception as error:
        if offline or not _is_of_network(error):
            raise
    finally:
        constants.HF_HUB_OFFLINE = offline
    host = str(urlparse(constants.ENDPOINT).hostname)
    if not getproxies():
        socket.create_connection((host, 443), timeout=10).close()
    return cast(nn.Module, create())


def _fetched(name: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    """Fetch a network with its zoo's weights; any error becomes an InputError of one line."""
    try:
        with redirect_stderr(io.StringIO()):
            return _built(name, fetch)
    except InputError as error:
        if not _is_of_network(error.__cause__):
            raise
        raise InputError(
            f"the pretrained weights of {name} cannot be fetched and are not on the disk "
            f"({error.__cause__}); give {name}@FILE.safetensors, or {name}@random if you mean an "
            "untrained network"
        ) from error


def _is_of_network(error: BaseException | None) -> bool:
    """Return whether an exception is about reaching a host, or about a file that is not there."""
    libraries = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib")
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in libraries
