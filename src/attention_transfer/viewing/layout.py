"""From what networks see to the columns and rows of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.decoding import Box, CorruptImageError
from attention_transfer.drawing.maps import Cell, Column, Place, Row, relative, shared_limit
from attention_transfer.viewing.images import Picture
from attention_transfer.viewing.inference import MapRequest, NetworkMaps
from attention_transfer.viewing.levels import GRADIENT, MapPoint
from attention_transfer.viewing.networks import NamedModel

__all__ = ["DisplayImage", "MapGrid", "see"]

LONGEST = 512
"""Pixels along the longer side of an image in a picture."""


@dataclass(frozen=True)
class DisplayImage:
    """An image to be drawn: all that any network gets of it."""

    picture: Picture
    box: Box
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class MapGrid:
    """What several networks see in several images."""

    look: MapRequest
    networks: list[NamedModel]
    spots: list[list[MapPoint]]
    """Of each network."""
    scenes: list[DisplayImage]
    sights: list[list[NetworkMaps]]
    """Of each network, one for each scene."""

    def columns(self) -> list[Column]:
        """Of a picture: a level's networks side by side where all show the same levels, else each
        network by itself.
        """
        return [column for _, _, column in self._arranged()]

    def rows(self) -> list[Row]:
        """Of a picture, an image each."""
        order = [(network, spot) for network, spot, _ in self._arranged()]
        return [self._row(index, order) for index in range(len(self.scenes))]

    def caption(self) -> str:
        """What the maps are."""
        by = {"sum": "the sum", "max": "the largest"}[self.look.map]
        power = "" if self.look.power == 1 else f"^{self.look.power:g}"
        what, over, where = "A", "channels", "with A what a network puts out at the point"
        if self.look.attention == "gradient":
            what, over = "J", "colours"
            where = "with J the gradient of the loss of the predicted class at the image"
        return (
            f"{self.look.attention.capitalize()} attention: {by} over {over} of |{what}|{power}, "
            f"{where}. Above on the image, below alone."
        )

    def limit(self) -> float:
        """Of the scale that all maps share."""
        return shared_limit(
            [relative(found) for own in self.sights for one in own for found in one.maps]
        )

    def _arranged(self) -> list[tuple[int, int, Column]]:
        """Network, spot and column in the order they are drawn."""
        labels = [[spot.label for spot in own] for own in self.spots]
        alike = len(self.networks) > 1 and all(own == labels[0] for own in labels)
        pairs = [
            (network, spot) for network, own in enumerate(self.spots) for spot in range(len(own))
        ]
        if alike:
            pairs.sort(key=lambda pair: pair[1])
        return [(*pair, self._column(*pair, alike)) for pair in pairs]

    def _column(self, network: int, spot: int, by_level: bool) -> Column:
        label, point = self.spots[network][spot]
        height, width = self.sights[network][0].maps[spot].shape
        named = "" if point == label or point == GRADIENT.point else f"{point} · "
        name, note = self.networks[network].name, f"{named}{height}×{width}"
        return Column(label, name, note) if by_level else Column(name, label, note)

    def _row(self, index: int, order: Sequence[tuple[int, int]]) -> Row:
        scene = self.scenes[index]
        cells = []
        for network, spot in order:
            sight = self.sights[network][index]
            cells.append(Cell(relative(sight.maps[spot]), _place(sight.box, scene.box)))
        answers = [
            (one.name if len(self.networks) > 1 else "", str(own[index].answer or "no prediction"))
            for one, own in zip(self.networks, self.sights, strict=True)
        ]
        size = (scene.box.bottom - scene.box.top, scene.box.right - scene.box.left)
        return Row(scene.picture.name, scene.pixels, size, answers, cells)


def see(
    networks: list[NamedModel], pictures: Sequence[Picture], look: MapRequest
) -> tuple[MapGrid, dict[int, str]]:
    """Looks at every image through every network.

    Returns:
        What is seen in the images that can be read, and why others cannot, by their place.

    Raises:
        InputError: points that there are not, or a network that does not take the images.
    """
    scenes, unreadable = [], {}
    for place, picture in enumerate(pictures):
        try:
            scenes.append(_scene(picture, networks, look))
        except CorruptImageError as error:
            unreadable[place] = str(error)
    if not scenes:
        return MapGrid(look, networks, [], [], []), unreadable
    readable = [scene.picture for scene in scenes]
    spots = look.spots(networks, readable)
    sights = [
        list(look.sights(network, own, readable))
        for network, own in zip(networks, spots, strict=True)
    ]
    return MapGrid(look, networks, spots, scenes, sights), unreadable


def _scene(picture: Picture, networks: Sequence[NamedModel], look: MapRequest) -> DisplayImage:
    boxes = [look.box(network, picture) for network in networks]
    edges = list(zip(*boxes, strict=True))
    box = Box(min(edges[0]), min(edges[1]), max(edges[2]), max(edges[3]))
    height, width = box.bottom - box.top, box.right - box.left
    scale = min(1, LONGEST / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    values = picture.part(size, box, "bilinear").clamp(0, 1)
    pixels = (255 * values).round().byte().permute(1, 2, 0).numpy()
    return DisplayImage(picture, box, pixels)


def _place(box: Box, whole: Box) -> Place:
    """A part of an image, in shares of another."""
    width, height = whole.right - whole.left, whole.bottom - whole.top
    return Place(
        (box.left - whole.left) / width,
        (box.top - whole.top) / height,
        (box.right - whole.left) / width,
        (box.bottom - whole.top) / height,
    )
