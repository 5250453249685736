"""Run networks on images: their attention maps at the chosen points, and their predictions."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.decoding import Box, CorruptImageError
from attention_transfer.data.views import centre
from attention_transfer.errors import InputError
from attention_transfer.functional.maps import MapKind
from attention_transfer.inference.images import SourceImage
from attention_transfer.inference.networks import NamedModel
from attention_transfer.transfer import Attention, attention_of
from attention_transfer.transfer.pairing import PairingSide
from attention_transfer.transfer.terms.base import check_choice, check_power
from attention_transfer.viewing.levels import GRADIENT, MapPoint, select_points

__all__ = ["Answer", "MapRequest", "NetworkMaps"]

BATCH_SIZE = 16
"""Images in a forward pass; fewer where many points are read, to bound memory."""


class Answer(NamedTuple):
    """The class that a network finds most probable."""

    label: int
    probability: float
    name: str

    def __str__(self) -> str:
        percent = 100 * self.probability
        decimals = 1 if percent < 1 or 99 < percent < 99.95 else 0
        return f"{self.name}, {percent:.{decimals}f} %"


class NetworkMaps(NamedTuple):
    """One network's attention maps and prediction for one image."""

    maps: list[NDArray[np.float32]]
    """A map (H, W) for each of the network's points."""
    answer: Answer | None
    """None if the network returns no logits, or logits that are not finite."""
    box: Box
    """The part of the image that the network received, in the image's pixels."""


@dataclass(frozen=True)
class MapRequest:
    """The attention maps to compute: which attention, at which points, of which image parts.

    Args:
        points: see :func:`attention_transfer.viewing.levels.select_points`.
        attention: ``"activation"`` or ``"gradient"``.
        map: ``"sum"`` or ``"max"`` over channels.
        power: p > 0 in abs(A)^p.
        crop: whether networks receive the centre of an image instead of all of it.

    Raises:
        InputError: an unknown attention or map, a power that is not above 0, or no points.
    """

    points: str | Sequence[str] = "low,middle,top"
    attention: Literal["activation", "gradient"] = "activation"
    map: MapKind = "sum"
    power: float = 2.0
    crop: bool = False

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ("activation", "gradient"))
        check_choice("map", self.map, ("sum", "max"))
        check_power(self.power)
        if not self.points:
            raise InputError("got no points, expected low, middle, top, all, or modules' names")

    def select_points(
        self, networks: Sequence[NamedModel], images: Sequence[SourceImage]
    ) -> list[list[MapPoint]]:
        """Return the points of each network.

        A network without an input size of its own is inspected at the first image's size.

        Raises:
            InputError: a point does not exist.
        """
        if self.attention == "gradient":
            if self.points != MapRequest.points:
                raise InputError(
                    f"gradient attention is read at the images, got the points {self.points!r}; "
                    "leave them out, or choose activation attention"
                )
            return [[GRADIENT] for _ in networks]
        sides = [
            PairingSide(network.network, (network.channels, *self._input_size(network, images[0])))
            for network in networks
        ]
        return select_points([network.name for network in networks], sides, self.points)

    def compute(
        self, network: NamedModel, points: Sequence[MapPoint], images: Sequence[SourceImage]
    ) -> Iterator[NetworkMaps]:
        """Run a network on images; yield its maps and prediction for each of them.

        Raises:
            InputError: the network does not accept images of this size.
        """
        count = max(1, min(BATCH_SIZE, 4 * BATCH_SIZE // len(points)))
        for size, group in itertools.groupby(
            images, key=lambda image: self._input_size(network, image)
        ):
            same_size = list(group)
            for start in range(0, len(same_size), count):
                yield from self._batch(network, points, same_size[start : start + count], size)

    def box(self, network: NamedModel, image: SourceImage) -> Box:
        """Return the part of an image that a network receives, in the image's pixels."""
        height, width = image.size
        if self.crop:
            return centre((height, width), self._input_size(network, image), network.crop_share)
        return Box(0, 0, width, height)

    def _input_size(self, network: NamedModel, image: SourceImage) -> tuple[int, int]:
        size = network.preprocessing.size if network.preprocessing else None
        return size or image.size

    def _batch(
        self,
        network: NamedModel,
        points: Sequence[MapPoint],
        images: Sequence[SourceImage],
        size: tuple[int, int],
    ) -> Iterator[NetworkMaps]:
        interpolation = network.preprocessing.interpolation if network.preprocessing else "bilinear"
        boxes, crops = [], []
        for image in images:
            try:
                boxes.append(self.box(network, image))
                crops.append(image.crop(size, boxes[-1], interpolation, network.image_channels))
            except CorruptImageError as error:
                raise InputError(f"{image.name} can no longer be read: {error}") from None
        result = self._attention(network, points, torch.stack(crops))
        answers = _answers(network, result.output, len(images))
        maps = [result.maps[point.name].float().cpu().numpy() for point in points]
        for index, (answer, box) in enumerate(zip(answers, boxes, strict=True)):
            yield NetworkMaps([attention[index] for attention in maps], answer, box)

    def _attention(
        self, network: NamedModel, points: Sequence[MapPoint], images: Tensor
    ) -> Attention:
        names = [point.name for point in points] if self.attention == "activation" else None
        with network.running_on(images) as placed:
            return attention_of(
                network.network,
                placed,
                names,
                self.attention,
                self.map,
                self.power,
                network.preprocessing,
            )


def _answers(network: NamedModel, output: object, count: int) -> list[Answer | None]:
    """Return the most probable class of each image, where a network returns logits (N, classes)."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return [None] * count
    probabilities = network.probabilities_of(output.detach().cpu())
    largest, labels = probabilities.max(dim=1)
    classes = output.shape[1]
    return [
        Answer(label, value, network.class_name(label, classes)) if np.isfinite(value) else None
        for value, label in zip(largest.tolist(), labels.tolist(), strict=True)
    ]
