"""The table of maps: attention maps beside the images that they belong to.

Each row of the table is an image. Its left column shows the image; every other column shows one
network's attention at one point, above laid over the image and below alone. All maps of a figure
share one scale: attention in multiples of an even spread over the image.
"""

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.drawing.scale import COLOURS, Pixels, check_axes, colourize, fractions
from attention_transfer.drawing.text import (
    draw_text,
    ignore_missing_glyphs,
    shorten,
    text_height,
    wrap,
)

__all__ = ["Cell", "Column", "ImagePart", "MapsFigure", "Row", "count_lines", "draw_maps"]

DOTS_PER_INCH = 150

MOST_COLUMNS = 12
"""Columns of maps on one line; further columns go on a line below."""

TALLEST = 1.5
"""Height over width of the tallest cells; taller images are drawn narrower."""

THINNEST = 1 / 16
"""Shorter side over longer side of a drawn image; a thinner one is widened, with a note."""

MARGIN, GAP, GROUP_GAP, ROW_GAP = 0.14, 0.06, 0.18, 0.2
"""Inches."""

INK, GREY = "#222222", "#6b6b6b"


class ImagePart(NamedTuple):
    """A rectangle of an image, its edges as fractions of the image's width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


WHOLE_IMAGE = ImagePart()


@dataclass(frozen=True)
class Column:
    """The headlines of one column of maps."""

    group: str
    """Shared with neighbouring columns, such as a level or a network."""
    title: str
    note: str = ""


class Cell(NamedTuple):
    """A map (H, W) of unit mean, and the part of the image that it covers."""

    map: NDArray[np.float64]
    part: ImagePart = WHOLE_IMAGE


@dataclass(frozen=True)
class Row:
    """An image, the networks' predictions for it, and a map for each column."""

    name: str
    pixels: Pixels
    """(H, W, 3)."""
    size: tuple[float, float]
    """Height and width of the original image, in pixels."""
    answers: Sequence[tuple[str, str]]
    """Each network's name and prediction; the name is empty if there is one network."""
    cells: Sequence[Cell]


class MapsFigure(Figure):
    """A figure that a notebook displays by itself, independent of pyplot."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure, without a warning for every character that no font has."""
        with ignore_missing_glyphs():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=DOTS_PER_INCH)
        return png.getvalue()


def draw_maps(
    columns: Sequence[Column],
    rows: Sequence[Row],
    limit: float | None,
    caption: str = "",
    cell_width: float = 1.45,
) -> MapsFigure:
    """Draw the table of maps.

    Args:
        columns: neighbours of the same group share one headline.
        rows: the images, each with as many cells as there are columns.
        limit: the value of the brightest colour; None gives every map its own largest value.
        caption: text under the table.
        cell_width: inches.

    Raises:
        InputError: a map does not have two axes.
    """
    for row in rows:
        for cell in row.cells:
            check_axes(cell.map, "H", "W")
    table = _Table(columns, cell_width)
    lines = [(row, segment) for row in rows for segment in table.segments]
    headed = [segment for segment, _ in itertools.groupby(segment for _, segment in lines)]
    footer = wrap(caption, table.width - 2 * MARGIN, 7, lines=4)
    height = sum(table.line_height(row, segment) for row, segment in lines)
    height += sum(map(table.head_height, headed))
    height += MARGIN + 0.6 + text_height(footer, 7)
    size = (table.width, _to_whole_dots(height))
    figure = MapsFigure(size, dpi=DOTS_PER_INCH, facecolor="white")
    top, previous = MARGIN, None
    for row, segment in lines:
        if segment is not previous:
            table.draw_head(figure, segment, top)
            top += table.head_height(segment)
        table.draw_line(figure, row, segment, limit, top)
        top += table.line_height(row, segment)
        previous = segment
    beyond = limit is not None and any(
        (cell.map > limit).any() for row in rows for cell in row.cells
    )
    _draw_legend(figure, limit, beyond, top, table.width - 2 * MARGIN)
    draw_text(figure, footer, MARGIN, top + 0.5, 7, colour=GREY)
    return figure


def count_lines(columns: Sequence[Column]) -> int:
    """Return how many lines of cells each image takes.

    >>> count_lines([Column("low level", "a")] * 13)
    2
    """
    return len(_segments(columns))


_Segment = tuple[tuple[int, Column], ...]
"""The columns of one line, with their numbers."""


def _segments(columns: Sequence[Column]) -> list[_Segment]:
    """Divide the columns into lines, between groups where possible and else evenly."""
    segments: list[list[tuple[int, Column]]] = []
    for _, members in itertools.groupby(enumerate(columns), key=lambda item: item[1].group):
        group = list(members)
        if segments and len(segments[-1]) + len(group) <= MOST_COLUMNS:
            segments[-1] += group
            continue
        size = math.ceil(len(group) / math.ceil(len(group) / MOST_COLUMNS))
        segments += [group[start : start + size] for start in range(0, len(group), size)]
    return [tuple(segment) for segment in segments]


class _TextLine(NamedTuple):
    """A text under an image."""

    text: str
    size: float
    bold: bool = False
    colour: str = INK

    @property
    def height(self) -> float:
        """Return the height in inches, with the space below it."""
        return text_height(self.text, self.size) + 0.04


class _Table:
    """The table's layout, in inches from the figure's upper left corner."""

    def __init__(self, columns: Sequence[Column], cell_width: float) -> None:
        self.segments = _segments(columns)
        self.cell_width = _to_whole_dots(cell_width)
        self.lefts = {segment: list(self._lefts(segment)) for segment in self.segments}
        right = max((lefts[-1] for lefts in self.lefts.values()), default=MARGIN) + self.cell_width
        self.width = _to_whole_dots(right + MARGIN)

    def _lefts(self, segment: _Segment) -> Iterator[float]:
        """Return the left edge of each column."""
        left, group = MARGIN + self.cell_width, None
        for _, column in segment:
            left += GAP if column.group == group else GROUP_GAP
            yield _to_whole_dots(left)
            left, group = left + self.cell_width, column.group

    def head_height(self, segment: _Segment) -> float:
        """Return the height of the headlines above a segment."""
        titles = max(text_height(self._title(column), 8) for _, column in segment)
        notes = 0.17 if any(column.note for _, column in segment) else 0.06
        return _to_whole_dots(0.27 + titles + notes)

    def line_height(self, row: Row, segment: _Segment) -> float:
        """Return the height of a line: two cells, or one cell and the texts below it."""
        cell = self._cell_height(row)
        texts = sum(line.height for line in self._texts(row, segment))
        return _to_whole_dots(max(2 * cell + GAP, cell + GAP + texts) + ROW_GAP)

    def _cell_height(self, row: Row) -> float:
        """Return the height of one image or map."""
        return _to_whole_dots(self.cell_width * min(TALLEST, _drawn_ratio(row)))

    def _title(self, column: Column) -> str:
        return wrap(column.title, self.cell_width, 8)

    def _texts(self, row: Row, segment: _Segment) -> Iterator[_TextLine]:
        """Return the texts under an image, which appear on its first line only."""
        if segment is not self.segments[0]:
            return
        width = self.cell_width
        yield _TextLine(wrap(row.name, width, 8, bold=True), 8, bold=True)
        if _drawn_ratio(row) != row.size[0] / row.size[1]:
            pixels = f"{round(row.size[1])}x{round(row.size[0])} pixels, drawn thicker than it is"
            yield _TextLine(wrap(pixels, width, 6.5), 6.5, colour=GREY)
        for network, answer in row.answers:
            if network:
                yield _TextLine(shorten(network, width, 6.5), 6.5, colour=GREY)
            yield _TextLine(wrap(answer, width, 8), 8)

    def draw_head(self, figure: Figure, segment: _Segment, top: float) -> None:
        """Draw the headlines of groups and columns."""
        columns = [column for _, column in segment]
        placed = list(zip(self.lefts[segment], columns, strict=True))
        for group, members in itertools.groupby(placed, key=lambda item: item[1].group):
            lefts = [left for left, _ in members]
            right = lefts[-1] + self.cell_width
            headline = shorten(group, right - lefts[0], 10, bold=True)
            draw_text(figure, headline, lefts[0], top, 10, bold=True)
            _draw_rule(figure, lefts[0], right, top + 0.21)
        for left, column in placed:
            title, note = self._title(column), shorten(column.note, self.cell_width, 6.5)
            draw_text(figure, title, left, top + 0.25)
            below = top + 0.25 + text_height(title, 8)
            draw_text(figure, note, left, below, 6.5, colour=GREY)

    def draw_line(
        self, figure: Figure, row: Row, segment: _Segment, limit: float | None, top: float
    ) -> None:
        """Draw an image, and each map of a segment on the image and alone."""
        second = top + self._cell_height(row) + GAP
        image = _enlarged(row.pixels)
        _show(self._add_cell(figure, row, MARGIN, top), image)
        below = second
        for line in self._texts(row, segment):
            draw_text(
                figure, line.text, MARGIN, below, line.size, bold=line.bold, colour=line.colour
            )
            below += line.height
        for left, (number, _) in zip(self.lefts[segment], segment, strict=True):
            cell = row.cells[number]
            brightest = limit or max(float(np.nan_to_num(cell.map).max()), 1e-300)
            _show(self._add_cell(figure, row, left, top), _overlay(image, cell, brightest))
            alone = self._add_cell(figure, row, left, second)
            _show(alone, cell.map, cell.part, cmap=COLOURS, norm=Normalize(0, brightest))

    def _add_cell(self, figure: Figure, row: Row, left: float, top: float) -> Axes:
        """Add axes of the image's shape at the left of a cell."""
        height = self._cell_height(row)
        width = _to_whole_dots(min(self.cell_width, height / _drawn_ratio(row)))
        return _add_axes(figure, left, top, width, height)


def _drawn_ratio(row: Row) -> float:
    """Return height over width of an image as it is drawn."""
    return min(1 / THINNEST, max(THINNEST, row.size[0] / row.size[1]))


def _to_whole_dots(inches: float) -> float:
    """Round a length to whole dots, so that images have sharp edges."""
    return round(inches * DOTS_PER_INCH) / DOTS_PER_INCH


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes without ticks; lengths are inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    box = (left / across, 1 - (top + height) / down, width / across, height / down)
    return figure.add_axes(box, xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0), frame_on=False)


def _show(axes: Axes, values: NDArray[Any], part: ImagePart = WHOLE_IMAGE, **colours: Any) -> None:
    """Show pixels, or a map with its colours, on a part of axes that span the image."""
    extent = (part.left, part.right, part.bottom, part.top)
    interpolation = "nearest" if colours else "auto"
    axes.imshow(values, extent=extent, aspect="auto", interpolation=interpolation, **colours)
    axes.set(xlim=(0, 1), ylim=(1, 0))


def _enlarged(pixels: Pixels) -> Pixels:
    """Repeat the pixels of a small image, so that a smooth map can lie on it."""
    times = max(1, 256 // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _overlay(pixels: Pixels, cell: Cell, brightest: float) -> NDArray[np.float64]:
    """Return the image in grey with the map as coloured light on it, (H, W, 3) from 0 to 1.

    The two are blended as photo editors' "screen" mode does, 1 - (1 - a)(1 - b), which keeps both
    visible.
    """
    height, width = pixels.shape[:2]
    dimmed = 0.6 * (pixels @ np.array([0.299, 0.587, 0.114])) / 255
    left, right = (round(edge * width) for edge in (cell.part.left, cell.part.right))
    top, bottom = (round(edge * height) for edge in (cell.part.top, cell.part.bottom))
    size = (max(1, right - left), max(1, bottom - top))
    attention = Image.fromarray(fractions(cell.map, brightest).astype(np.float32))
    smooth = np.asarray(attention.resize(size, Image.Resampling.BICUBIC))
    light = np.zeros((height, width, 3))
    light[top : top + size[1], left : left + size[0]] = colourize(smooth) / 255
    blended: NDArray[np.float64] = 1 - (1 - dimmed[..., None]) * (1 - 0.9 * light)
    return blended


def _draw_rule(figure: Figure, left: float, right: float, top: float) -> None:
    """Draw a thin line under a headline."""
    across, down = figure.get_size_inches()
    height = 1 - top / down
    ends = [left / across, right / across]
    figure.add_artist(Line2D(ends, [height, height], color="#c8c8c8", linewidth=0.7))


def _draw_legend(
    figure: Figure, limit: float | None, beyond: bool, top: float, width: float
) -> None:
    """Draw the colour bar and its meaning; ``beyond``: some values exceed its last mark."""
    length = min(2.9, 0.4 * width)
    axes = _add_axes(figure, MARGIN, top, length, 0.11)
    _show(axes, np.linspace(0, 1, 256)[None], cmap=COLOURS, norm=Normalize(0, 1))
    marks, meaning = {0.0: "none", 1.0: "most"}, "of each map"
    if limit is not None:
        steps = range(0, round(limit) + 1, math.ceil(limit / 5))
        marks = {step / limit: f"{step}" for step in steps} | {1.0: f"{limit:g}{'+' * beyond}"}
        meaning = "attention (1: as if spread evenly over the image)"
    for position, text in marks.items():
        align = {0.0: "left", 1.0: "right"}.get(position, "center")
        draw_text(figure, text, MARGIN + position * length, top + 0.13, 7, align=align)
    room = width - length - 0.12
    draw_text(figure, wrap(meaning, room, 7.5), MARGIN + length + 0.12, top + 0.015, 7.5)
