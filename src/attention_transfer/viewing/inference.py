"""What networks see in images: their maps at some points, and their answers."""

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
from attention_transfer.functional.maps import MapKind, to_float32
from attention_transfer.transfer import Attention, attention_of
from attention_transfer.transfer.pairing import PairingSide
from attention_transfer.transfer.terms.base import check_choice, check_power
from attention_transfer.viewing.images import Picture
from attention_transfer.viewing.levels import GRADIENT, MapPoint, chosen_spots
from attention_transfer.viewing.networks import NamedModel

__all__ = ["Answer", "MapRequest", "NetworkMaps"]

BATCH = 16
"""Images in a pass, fewer where many points are read."""


class Answer(NamedTuple):
    """The class that a network finds most probable."""

    label: int
    probability: float
    name: str

    def __str__(self) -> str:
        percent = 100 * self.probability
        exact = percent < 1 or 99 < percent < 99.95
        return f"{self.name}, {percent:.{1 if exact else 0}f} %"


class NetworkMaps(NamedTuple):
    """What one network sees in one image."""

    maps: list[NDArray[np.float32]]
    """A map (H, W) for each of the network's spots."""
    answer: Answer | None
    """None: it puts out no logits, or not finite ones."""
    box: Box
    """The part of the image that it was given."""


@dataclass(frozen=True)
class MapRequest:
    """How to look: which attention, where, at which part of the images.

    Args:
        points: see :func:`attention_transfer.viewing.levels.chosen_spots`.
        attention: ``"activation"`` or ``"gradient"``.
        map: ``"sum"`` or ``"max"``.
        power: p > 0 in abs(A)^p.
        crop: the middle of an image instead of all of it.

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

    def spots(
        self, networks: Sequence[NamedModel], pictures: Sequence[Picture]
    ) -> list[list[MapPoint]]:
        """Where each network is looked at; a network that takes images of any size is taken to get
        them as large as the first.

        Raises:
            InputError: points that there are not.
        """
        if self.attention == "gradient":
            if self.points != MapRequest.points:
                raise InputError(
                    f"gradient attention is read at the images, got the points {self.points!r}; "
                    "leave them out, or look at activation attention"
                )
            return [[GRADIENT] for _ in networks]
        sides = [
            PairingSide(one.network, (3, *self._input_size(one, pictures[0]))) for one in networks
        ]
        return chosen_spots([one.name for one in networks], sides, self.points)

    def sights(
        self, network: NamedModel, spots: Sequence[MapPoint], pictures: Sequence[Picture]
    ) -> Iterator[NetworkMaps]:
        """What a network sees in each image.

        Raises:
            InputError: it does not run on images of this size.
        """
        count = max(1, min(BATCH, 4 * BATCH // len(spots)))
        for size, same in itertools.groupby(
            pictures, key=lambda picture: self._input_size(network, picture)
        ):
            batch = list(same)
            for start in range(0, len(batch), count):
                yield from self._pass(network, spots, batch[start : start + count], size)

    def box(self, network: NamedModel, picture: Picture) -> Box:
        """The part of an image that a network is given, in the image's pixels."""
        height, width = picture.size
        if self.crop:
            return centre((height, width), self._input_size(network, picture))
        return Box(0, 0, width, height)

    def _input_size(self, network: NamedModel, picture: Picture) -> tuple[int, int]:
        """Of what the network gets."""
        wanted = network.normalization.size if network.normalization else None
        return wanted or picture.size

    def _pass(
        self,
        network: NamedModel,
        spots: Sequence[MapPoint],
        pictures: Sequence[Picture],
        size: tuple[int, int],
    ) -> Iterator[NetworkMaps]:
        by = network.normalization.interpolation if network.normalization else "bilinear"
        boxes, parts = [], []
        for picture in pictures:
            try:
                boxes.append(self.box(network, picture))
                parts.append(picture.part(size, boxes[-1], by))
            except CorruptImageError as error:
                raise InputError(f"{picture.name} can no longer be read: {error}") from None
        images = torch.stack(parts)
        seen = self._attention(network, spots, images)
        answers = _answers(network, seen.output, len(pictures))
        maps = [seen.maps[spot.point].float().cpu().numpy() for spot in spots]
        for number, (answer, box) in enumerate(zip(answers, boxes, strict=True)):
            yield NetworkMaps([found[number] for found in maps], answer, box)

    def _attention(
        self, network: NamedModel, spots: Sequence[MapPoint], images: Tensor
    ) -> Attention:
        like = next(
            (value for value in network.network.parameters() if value.is_floating_point()), images
        )
        points = [spot.point for spot in spots] if self.attention == "activation" else None
        try:
            return attention_of(
                network.network,
                images.to(like.device, like.dtype),
                points,
                self.attention,
                self.map,
                self.power,
                network.normalization,
            )
        except InputError:
            raise
        except Exception as error:
            height, width = images.shape[-2:]
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{network.name} does not run on images {height}x{width} "
                f"({type(error).__name__}: {reason}); give the size that it takes"
            ) from error


def _answers(network: NamedModel, output: object, count: int) -> list[Answer | None]:
    """The most probable classes by logits (N, classes), of at least two."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return [None] * count
    probabilities = to_float32(output.detach().cpu()).softmax(dim=1)
    best, indices = probabilities.max(dim=1)
    classes = output.shape[1]
    return [
        Answer(index, chance, network.class_name(index, classes)) if np.isfinite(chance) else None
        for chance, index in zip(best.tolist(), indices.tolist(), strict=True)
    ]
