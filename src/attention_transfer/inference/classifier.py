"""A trained network that takes images as they come: labels and probabilities."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.config import Interpolation
from attention_transfer.data.decoding import CorruptImageError
from attention_transfer.data.views import centre
from attention_transfer.errors import InputError
from attention_transfer.functional.maps import to_float32
from attention_transfer.inference.images import (
    Images,
    SourceImage,
    put_on_one_scale,
    source_images,
)
from attention_transfer.inference.networks import NamedModel, Network, named_models
from attention_transfer.preprocessing import PixelRange, Preprocessing
from attention_transfer.taps import call_network, evaluating, unwrapped
from attention_transfer.transfer import class_logits, preprocess
from attention_transfer.trust import trusting

__all__ = ["Classifier", "Prediction", "load"]

BATCH_SIZE = 64
"""Images of a forward pass."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image."""

    image: str
    """The image's name."""
    probabilities: NDArray[np.float32]
    """(K,): by softmax, which sum to 1; or by sigmoid, where an image may be of several classes."""
    class_names: tuple[str, ...]
    """(K,)."""

    @property
    def index(self) -> int:
        """The index of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def label(self) -> str:
        """The name of the most probable class."""
        return self.class_names[self.index]

    @property
    def probability(self) -> float:
        """The probability of the most probable class, from 0 to 1."""
        return float(self.probabilities[self.index])

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the first one first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[index], float(self.probabilities[index])) for index in order]


class _Input(NamedTuple):
    """An image as a network takes it, but for its normalization."""

    name: str
    pixels: Tensor
    """(C, H, W), from 0 to 1."""


@dataclass(frozen=True)
class Classifier:
    """A trained network with the preprocessing of its evaluation and its class names.

    It is in eval mode whenever it predicts, and computes in its weights' precision, float32 as a
    rule, also where it was trained in 16 bits.
    """

    model: NamedModel

    @property
    def network(self) -> nn.Module:
        """The network itself, which takes preprocessed images and returns logits."""
        return self.model.network

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes; None: they are not known."""
        return self.model.class_names

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The size and normalization of the network's input; None: images are used as they are."""
        return self.model.preprocessing

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of how the network was loaded."""
        return self.model.notices

    def predict(
        self,
        images: Images,
        *,
        names: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
        pixel_range: tuple[float, float] | None = None,
        corrupt: dict[str, str] | None = None,
    ) -> list[Prediction]:
        """Return what the network says about each image.

        Each image is preprocessed as in the evaluation of the network's run: turned as its EXIF
        data say, laid on white where it is transparent, cropped to its middle, resized, scaled and
        normalized.

        Args:
            images: a path, a folder or a pattern; an image of PIL; an array (H, W, 3), (H, W) or
                (N, H, W, 3), or a tensor (N, 3, H, W), each uint8 or from 0 to 1; or a list of
                these.
            names: what to call the images; by default their files' names, or numbers.
            batch_size: images of a forward pass.
            pixel_range: the values that become 0 and 1, of images of more than 8 bits; None: those
                that the network was trained with, or one range found from all the images.
            corrupt: takes up the images that cannot be read, by name, with the reason; None: the
                first of them is an error.

        Raises:
            InputError: an image cannot be read; the network does not return logits (N, K), or they
                are not finite.
        """
        given = None if pixel_range is None else PixelRange(*pixel_range)
        channels = [self.model.channels]
        sources = source_images(images, names, channels=channels, raw=given is not None)
        expected = self.preprocessing
        trained = None if expected is None else expected.pixel_range
        found = put_on_one_scale(sources, given, trained)
        if expected is not None and given is None:
            expected = expected.on_scale(found)
        predictions: list[Prediction] = []
        inputs = self._inputs(sources, expected, corrupt)
        for _, of_one_size in itertools.groupby(inputs, key=lambda one: one.pixels.shape):
            while batch := list(itertools.islice(of_one_size, batch_size)):
                logits = self._logits(torch.stack([one.pixels for one in batch]), expected)
                names_of_classes = self._names(logits.shape[1])
                rows = self.model.probabilities_of(logits).float().numpy()
                predictions += [
                    Prediction(one.name, row, names_of_classes)
                    for one, row in zip(batch, rows, strict=True)
                ]
        return predictions

    def _inputs(
        self,
        sources: Iterable[SourceImage],
        expected: Preprocessing | None,
        corrupt: dict[str, str] | None,
    ) -> Iterator["_Input"]:
        """Yield the centre crops of the images that can be read."""
        interpolation: Interpolation = "bilinear" if expected is None else expected.interpolation
        for source in sources:
            try:
                size = (expected.size if expected else None) or source.size
                box = centre(source.size, size, self.model.crop_share)
                channels = self.model.image_channels
                yield _Input(source.name, source.crop(size, box, interpolation, channels))
            except CorruptImageError as error:
                if corrupt is None:
                    raise InputError(
                        f"{source.name} cannot be read: {error}; leave it out"
                    ) from None
                corrupt[source.name] = str(error)

    def _logits(self, images: Tensor, expected: Preprocessing | None) -> Tensor:
        """Return the logits (N, K) of images from 0 to 1, in float32."""
        network = self.network
        with self.model.running_on(images) as placed, evaluating(network), torch.no_grad():
            output = call_network(network, preprocess(network, placed, expected))
        logits = to_float32(class_logits(output)).cpu()
        if not bool(logits.isfinite().all()):
            raise InputError(
                f"the logits of {self.model.name} are not finite: its training diverged, or its "
                "weights are damaged; train it again with a lower --lr"
            )
        return logits

    def _names(self, classes: int) -> tuple[str, ...]:
        return tuple(self.model.class_name(index, classes) for index in range(classes))


def load(
    model: Network | Classifier,
    *,
    image_size: tuple[int, int] | None = None,
    trust: Sequence[str] = (),
) -> Classifier:
    """Load a trained network to predict with: the one door for every MODEL.

    Args:
        model: a run or its folder, ``"NAME@FILE"``, the name of a network with pretrained weights,
            such as ``"timm:resnet18"``, or a module.
        image_size: height and width of its images in pixels; None: its own.
        trust: factories, as ``"package.module:factory"``, that the folder of a run may name.

    Raises:
        InputError: it is unknown, or has no trained weights.
        UntrustedError: the folder of a run names code that is not trusted.

    Example:
        >>> classifier = at.load("wrn-10-1@random")
        >>> (prediction,) = classifier.predict(torch.rand(3, 32, 32))
        >>> len(prediction.probabilities), len(prediction.top(3))
        (10, 3)
    """
    if isinstance(model, Classifier):
        return model
    with trusting(trust):
        (named,) = named_models([model], image_size)
    unwrapped(named.network).eval()
    return Classifier(named)
