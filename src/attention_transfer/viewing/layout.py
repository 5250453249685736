"""Arrange the maps of several networks on several images as columns and rows of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attention_transfer.data.decoding import Box, CorruptImageError
from attention_transfer.drawing.maps import Cell, Column, ImagePart, Row
from attention_transfer.drawing.rgb import to_rgb
from attention_transfer.drawing.scale import Pixels, shared_limit, to_unit_mean
from attention_transfer.inference.images import SourceImage, put_on_one_scale
from attention_transfer.inference.networks import NamedModel
from attention_transfer.preprocessing import PixelRange
from attention_transfer.viewing.levels import GRADIENT, MapPoint
from attention_transfer.viewing.network_maps import MapRequest, NetworkMaps

__all__ = ["DisplayImage", "MapGrid", "compute_grid"]

LONGEST_SIDE = 512
"""Pixels along the longer side of an image in a picture."""


@dataclass(frozen=True)
class DisplayImage:
    """An image as it is drawn: the smallest box that holds every network's part of it."""

    name: str
    box: Box
    """In the source image's pixels."""
    pixels: Pixels


@dataclass(frozen=True)
class MapGrid:
    """The attention maps of several networks on several images."""

    request: MapRequest
    networks: list[NamedModel]
    points: list[list[MapPoint]]
    """The points of each network."""
    images: list[DisplayImage]
    results: list[list[NetworkMaps]]
    """For each network, its maps and answer for each image."""

    def columns(self) -> list[Column]:
        """Return the columns of a picture.

        Where all networks show the same levels, each level has the networks side by side;
        otherwise each network has its points side by side.
        """
        return [column for _, _, column in self._ordered_columns()]

    def rows(self) -> list[Row]:
        """Return the rows of a picture, one for each image."""
        order = [(network, point) for network, point, _ in self._ordered_columns()]
        return [self._row(index, order) for index in range(len(self.images))]

    def caption(self) -> str:
        """Return the text that explains how the maps were computed."""
        mapping = {"sum": "the sum", "max": "the largest"}[self.request.map]
        power = "" if self.request.power == 1 else f"^{self.request.power:g}"
        symbol, channels = "A", "channels"
        meaning = "where A is the network's feature map at the point"
        if self.request.attention == "gradient":
            symbol, channels = "J", "colours"
            meaning = "where J is the gradient of the predicted class's loss at the image"
        return (
            f"{self.request.attention.capitalize()} attention: {mapping} over {channels} of "
            f"|{symbol}|{power}, {meaning}. Upper: on the image; lower: alone."
        )

    def limit(self) -> float:
        """Return the value of the brightest colour on the scale that all maps share."""
        return shared_limit(
            [
                to_unit_mean(attention)
                for results in self.results
                for result in results
                for attention in result.maps
            ]
        )

    def _ordered_columns(self) -> list[tuple[int, int, Column]]:
        """Return the network's number, the point's number and the headlines of each column."""
        labels = [[point.label for point in points] for points in self.points]
        by_level = len(self.networks) > 1 and all(other == labels[0] for other in labels)
        order = [
            (network, point)
            for network, points in enumerate(self.points)
            for point in range(len(points))
        ]
        if by_level:
            order.sort(key=lambda pair: pair[1])
        return [(*pair, self._column(*pair, by_level)) for pair in order]

    def _column(self, network: int, point: int, by_level: bool) -> Column:
        label, name = self.points[network][point]
        size = "×".join(map(str, self.results[network][0].maps[point].shape))
        note = size if name in (label, GRADIENT.name) else f"{name} · {size}"
        title = self.networks[network].name
        return Column(label, title, note) if by_level else Column(title, label, note)

    def _row(self, index: int, order: Sequence[tuple[int, int]]) -> Row:
        image = self.images[index]
        cells = []
        for network, point in order:
            result = self.results[network][index]
            cells.append(Cell(to_unit_mean(result.maps[point]), _relative(result.box, image.box)))
        answers = [
            (
                network.name if len(self.networks) > 1 else "",
                str(results[index].answer or "no prediction"),
            )
            for network, results in zip(self.networks, self.results, strict=True)
        ]
        size = (image.box.bottom - image.box.top, image.box.right - image.box.left)
        return Row(image.name, image.pixels, size, answers, cells)


def on_one_scale(
    networks: Sequence[NamedModel], images: Sequence[SourceImage], given: PixelRange | None
) -> list[NamedModel]:
    """Put images of more than 8 bits on one scale, and return the networks that expect it.

    Args:
        networks: the networks; a run's pixel range is the default.
        images: the images.
        given: by the user, for all networks, whatever range they were trained with.

    Raises:
        InputError: a range is given, and all images have 8 bits.
    """
    expected = [network.preprocessing for network in networks if network.preprocessing is not None]
    trained = next((one.pixel_range for one in expected if one.pixel_range is not None), None)
    pixel_range = put_on_one_scale(images, given, trained)
    return [
        network
        if network.preprocessing is None or given is not None
        else replace(network, preprocessing=network.preprocessing.on_scale(pixel_range))
        for network in networks
    ]


def compute_grid(
    networks: list[NamedModel], images: Sequence[SourceImage], request: MapRequest
) -> tuple[MapGrid, dict[int, str]]:
    """Compute the attention maps of every network on every image.

    Returns:
        The maps on the readable images, and the reasons why other images cannot be read, by their
        index.

    Raises:
        InputError: a point does not exist, or a network does not accept the images.
    """
    displayed, readable, unreadable = [], [], {}
    for index, image in enumerate(images):
        try:
            displayed.append(_display_image(image, networks, request))
            readable.append(image)
        except CorruptImageError as error:
            unreadable[index] = str(error)
    if not readable:
        return MapGrid(request, networks, [], [], []), unreadable
    points = request.select_points(networks, readable)
    results = [
        list(request.compute(network, chosen, readable))
        for network, chosen in zip(networks, points, strict=True)
    ]
    return MapGrid(request, networks, points, displayed, results), unreadable


def _display_image(
    image: SourceImage, networks: Sequence[NamedModel], request: MapRequest
) -> DisplayImage:
    """Cut out and resize the part of an image that is drawn."""
    lefts, tops, rights, bottoms = zip(
        *(request.box(network, image) for network in networks), strict=True
    )
    box = Box(min(lefts), min(tops), max(rights), max(bottoms))
    height, width = box.bottom - box.top, box.right - box.left
    scale = min(1, LONGEST_SIDE / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    values = image.crop(size, box, "bilinear").clamp(0, 1)
    return DisplayImage(image.name, box, to_rgb(values.permute(1, 2, 0).numpy()))


def _relative(box: Box, whole: Box) -> ImagePart:
    """Return a box as fractions of a box around it."""
    width, height = whole.right - whole.left, whole.bottom - whole.top
    return ImagePart(
        (box.left - whole.left) / width,
        (box.top - whole.top) / height,
        (box.right - whole.left) / width,
        (box.bottom - whole.top) / height,
    )
