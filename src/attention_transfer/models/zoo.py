"""Networks of others: timm's, torchvision's, and any factory that can be imported."""

import inspect
import io
import socket
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from typing import Any, cast
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from torch import nn

from attention_transfer.errors import InputError, first_line, nearest
from attention_transfer.factories import import_object
from attention_transfer.models.heads import replace_head
from attention_transfer.preprocessing import Preprocessing

__all__ = [
    "Factory",
    "TimmModel",
    "TorchvisionModel",
    "ZooModel",
    "imagenet_classes",
    "own_preprocessing",
]

ImageSize = tuple[int, int]
"""Height and width."""


class ZooModel:
    """A name in somebody's zoo.

    Args:
        name: without the zoo's prefix.

    Raises:
        InputError: the zoo has no such network.
    """

    has_pretrained = True

    def __init__(self, name: str) -> None:
        self.name = name

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        """The network.

        Args:
            classes: how many it tells apart; None: as many as it does by itself.
            image_size: what a network of fixed input size is to be made for.
            pretrained: with the zoo's weights, fetched if they are not there.

        Raises:
            InputError: it cannot be built so, or the weights cannot be had.
        """
        raise NotImplementedError

    def preprocessing(self) -> Preprocessing:
        """The input size and normalization that its pretrained weights expect."""
        raise NotImplementedError

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images of its pretrained weights."""
        preprocessing = self.preprocessing()
        assert preprocessing.size is not None
        return len(preprocessing.mean), *preprocessing.size


class TimmModel(ZooModel):
    """``timm:NAME``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        import timm

        if ":" not in name and not timm.is_model(name):
            raise InputError(f"timm has no model {name!r}; {_nearest(name, timm.list_models())}")

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        import timm

        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if image_size is not None and image_size != self.input_size[1:] and self._takes_size():
            options["img_size"] = image_size
        if not pretrained:
            return _built(f"timm:{self.name}", lambda: timm.create_model(self.name, **options))
        return _fetched(
            f"timm:{self.name}",
            lambda: _from_hub(lambda: timm.create_model(self.name, pretrained=True, **options)),
        )

    def preprocessing(self) -> Preprocessing:
        import timm

        settings = timm.get_pretrained_cfg(self.name, allow_unregistered=True)
        return _timm_input(vars(settings) if settings else {})

    def _takes_size(self) -> bool:
        """Whether the network is made for one input size, to be told when it is built."""
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
    """``torchvision:NAME``."""

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
        options: dict[str, Any] = {}
        if self.name in ("inception_v3", "googlenet"):
            # Logits alone, in training too; and what torchvision is about to make its default.
            options |= {"aux_logits": False, "init_weights": True}
        if image_size is not None and "vit" in self.name:
            options["image_size"] = image_size[0]
        if pretrained:
            network = _fetched(
                f"torchvision:{self.name}", lambda: builder(weights="DEFAULT", **options)
            )
            if classes is not None:
                replace_head(network, classes, self.input_size)
        else:
            if classes is not None:
                options["num_classes"] = classes
            network = _built(f"torchvision:{self.name}", lambda: builder(weights=None, **options))
        return network

    def preprocessing(self) -> Preprocessing:
        from torchvision import models

        found = models.get_model_weights(self.name).DEFAULT.transforms()
        (size,) = found.crop_size
        cubic = found.interpolation.value == "bicubic"
        return Preprocessing(
            found.mean, found.std, (size, size), "bicubic" if cubic else "bilinear"
        )


class Factory(ZooModel):
    """``package.module:factory``: a function or class that gives a network.

    It is called with ``num_classes=`` (or ``classes=``) if it takes that. A network that it gives
    with trained weights keeps them.
    """

    has_pretrained = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.factory = import_object(name)

    def build(
        self, classes: int | None, image_size: ImageSize | None = None, pretrained: bool = False
    ) -> nn.Module:
        parameters = inspect.signature(self.factory).parameters
        taken = next((known for known in ("num_classes", "classes") if known in parameters), None)
        options = {} if taken is None or classes is None else {taken: classes}
        network = _built(self.name, lambda: self.factory(**options))
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{self.name} gave a {type(network).__name__}, expected a torch.nn.Module"
            )
        return network

    def preprocessing(self) -> Preprocessing:
        return Preprocessing((0.0,) * 3, (1.0,) * 3, (224, 224))


def own_preprocessing(network: nn.Module) -> Preprocessing | None:
    """What the images of a network of timm's must be like, which it says itself; None of others.

    Example:
        >>> import timm
        >>> own_preprocessing(timm.create_model("mobilenetv3_small_050")).size, own_preprocessing(nn.Identity())
        ((224, 224), None)
    """
    settings = getattr(network, "pretrained_cfg", None)
    return _timm_input(settings) if isinstance(settings, dict) else None


@cache
def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1,000 classes as people call them, in the order of the zoos' logits.

    >>> imagenet_classes()[985]
    'daisy'
    """
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    names = (info.index_to_description(index) for index in range(info.num_classes()))  # type: ignore[no-untyped-call]
    return tuple(name.partition(",")[0] for name in names)


def _timm_input(settings: dict[str, Any]) -> Preprocessing:
    from timm.data.config import resolve_data_config

    found: dict[str, Any] = resolve_data_config(pretrained_cfg=settings)  # type: ignore[no-untyped-call]
    cubic = found["interpolation"] == "bicubic"
    return Preprocessing(
        found["mean"], found["std"], found["input_size"][1:], "bicubic" if cubic else "bilinear"
    )


def _nearest(name: str, known: list[str]) -> str:
    """The nearest names, or those that begin alike, or a few: zoos are large."""
    close = nearest(name, known)
    if close.startswith("did you mean"):
        return close
    alike = [other for other in known if other.startswith(name[:4])]
    return f"known: {', '.join((alike or known)[:8])}, ..."


def _built(name: str, build: Callable[[], Any]) -> nn.Module:
    """What a builder gives; whatever it raises is the user's to see, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast(nn.Module, build())
    except Exception as error:
        raise InputError(
            f"{name} could not be built: {type(error).__name__}: {first_line(error)}"
        ) from error


def _from_hub(create: Callable[[], Any]) -> nn.Module:
    """What timm gives with weights: from the disk, or else from the hub if it can be reached.

    The hub's library would try for most of a minute where there is no network at all.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        return cast(nn.Module, create())
    except Exception:
        if offline:
            raise
    finally:
        constants.HF_HUB_OFFLINE = offline
    host = str(urlparse(constants.ENDPOINT).hostname)
    if not getproxies():
        socket.create_connection((host, 443), timeout=10).close()
    return cast(nn.Module, create())


def _fetched(name: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    """A network with its zoo's weights; where they cannot be had, that in one line."""
    try:
        with redirect_stderr(io.StringIO()):
            return _built(name, fetch)
    except InputError as error:
        raise InputError(
            f"the pretrained weights of {name} cannot be fetched and are not on the disk "
            f"({error.__cause__}); give {name}@FILE.safetensors, or {name}@random if you mean an "
            "untrained network"
        ) from error
