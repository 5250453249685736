"""Attention maps beside the images they are of, from arrays alone.

A figure holds images in rows. At its left an image; in the other columns, above each other, one
network's attention at one point laid over the image, and the map itself. All maps of a figure share
one scale: attention relative to an even spread.
"""

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.drawing.text import (
    quiet_about_glyphs,
    shortened,
    text_height,
    wrapped,
    write,
)

__all__ = [
    "Cell",
    "Column",
    "MapsFigure",
    "Place",
    "Row",
    "draw_maps",
    "lines_of",
    "relative",
    "shared_limit",
]

COLOURS = matplotlib.colormaps["inferno"].with_extremes(bad="#9a9a9a")
"""Perceptually uniform, told apart by colour-blind people and in grey print. Grey: no number."""

DOTS = 150
"""An inch."""

MOST_COLUMNS = 12
"""Of maps beside each other; more go on below."""

TALLEST = 1.5
"""Height over width of the tallest cells; taller images are drawn narrower."""

THINNEST = 1 / 16
"""Shorter side over longer side of a drawn image; a thinner one is drawn thicker, which is said."""

MARGIN, GAP, GROUP_GAP, ROW_GAP = 0.14, 0.06, 0.18, 0.2
"""Inches."""

INK, GREY = "#222222", "#6b6b6b"


class Place(NamedTuple):
    """A part of an image, in shares of its width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


@dataclass(frozen=True)
class Column:
    """What one column shows."""

    group: str
    """What it has in common with its neighbours."""
    title: str
    note: str = ""


class Cell(NamedTuple):
    """A map (H, W), and the part of the image that it is of."""

    map: NDArray[np.float64]
    place: Place = Place()


@dataclass(frozen=True)
class Row:
    """An image, what the networks say to it, and a map for each column."""

    name: str
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""
    size: tuple[float, float]
    """Height and width that the pixels stand for."""
    answers: Sequence[tuple[str, str]]
    """Network and what it says; without a name if there is one network."""
    cells: Sequence[Cell]


class MapsFigure(Figure):
    """A figure that a notebook shows by itself; nothing of it lives in pyplot."""

    def draw(self, renderer: RendererBase) -> None:
        """As any figure is drawn, without a warning for every sign that no font has."""
        with quiet_about_glyphs():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=DOTS)
        return png.getvalue()


def relative(attention: NDArray[Any]) -> NDArray[np.float64]:
    """A map over its own mean: 1 where it is as much as if it were spread evenly; NaN where it is
    not finite.

    >>> relative(np.array([[1.0, 3.0]])), relative(np.zeros((1, 2)))
    (array([[0.5, 1.5]]), array([[0., 0.]]))
    """
    values = np.asarray(attention, dtype=np.float64)
    finite = np.isfinite(values)
    mean = values[finite].mean() if finite.any() else 0.0
    return np.where(finite, values / mean if mean > 0 else values, np.nan)


def shared_limit(maps: Sequence[NDArray[np.float64]]) -> float:
    """Where the colours of several relative maps end: the whole number above what 99 % of each of
    them stay under, between 2 and 5.

    >>> shared_limit([np.array([[0.5, 1.5]]), np.array([[0.0, 3.1, 2.9]])])
    4.0
    """
    numbers = [found[np.isfinite(found)] for found in maps]
    ends = [float(np.quantile(found, 0.99)) for found in numbers if found.size]
    return float(min(5, max(2, math.ceil(max(ends, default=2)))))


def draw_maps(
    columns: Sequence[Column],
    rows: Sequence[Row],
    limit: float | None,
    caption: str = "",
    cell_width: float = 1.45,
) -> MapsFigure:
    """Images in rows; in columns where networks look.

    Args:
        columns: of maps; neighbours of the same group stand under one headline.
        rows: each with as many cells as there are columns, of relative maps.
        limit: the value that has the last colour; None: every map's own largest.
        caption: what is shown, under all of it.
        cell_width: inches.
    """
    table = _Table(columns, cell_width)
    lines = [(row, part) for row in rows for part in table.parts]
    heads = [part for part, _ in itertools.groupby(part for _, part in lines)]
    foot = wrapped(caption, table.width - 2 * MARGIN, 7, lines=4)
    height = sum(table.height(row, part) for row, part in lines) + sum(map(table.head, heads))
    height += MARGIN + 0.6 + text_height(foot, 7)
    figure = MapsFigure((table.width, _whole(height)), dpi=DOTS, facecolor="white")
    top, before = MARGIN, None
    for row, part in lines:
        if part is not before:
            table.draw_head(figure, part, top)
            top += table.head(part)
        table.draw_row(figure, row, part, limit, top)
        top += table.height(row, part)
        before = part
    over = any((cell.map > limit).any() for row in rows for cell in row.cells) if limit else False
    _draw_scale(figure, limit, over, top, table.width - 2 * MARGIN)
    write(figure, foot, MARGIN, top + 0.5, 7, colour=GREY)
    return figure


def lines_of(columns: Sequence[Column]) -> int:
    """How many lines an image takes, if its columns are too many for one.

    >>> lines_of([Column("low level", "a")] * 13)
    2
    """
    return len(_parts(columns))


_Part = tuple[tuple[int, Column], ...]
"""Columns beside each other, with their numbers."""


def _parts(columns: Sequence[Column]) -> list[_Part]:
    """The columns, cut where they are too many to stand beside each other: between groups where
    that can be, and into pieces as equal as can be.
    """
    parts: list[list[tuple[int, Column]]] = []
    for _, members in itertools.groupby(enumerate(columns), key=lambda found: found[1].group):
        group = list(members)
        if parts and len(parts[-1]) + len(group) <= MOST_COLUMNS:
            parts[-1] += group
            continue
        size = math.ceil(len(group) / math.ceil(len(group) / MOST_COLUMNS))
        parts += [group[start : start + size] for start in range(0, len(group), size)]
    return [tuple(part) for part in parts]


class _Line(NamedTuple):
    """A text under an image."""

    text: str
    size: float
    bold: bool = False
    colour: str = INK

    @property
    def height(self) -> float:
        """In inches, with the space after it."""
        return text_height(self.text, self.size) + 0.04


class _Table:
    """Where everything stands, in inches from the figure's upper left corner."""

    def __init__(self, columns: Sequence[Column], cell_width: float) -> None:
        self.parts = _parts(columns)
        self.cell = _whole(cell_width)
        self.lefts = {part: list(self._lefts(part)) for part in self.parts}
        right = max((lefts[-1] for lefts in self.lefts.values()), default=MARGIN) + self.cell
        self.width = _whole(right + MARGIN)

    def _lefts(self, part: _Part) -> Iterator[float]:
        """The left edge of each column."""
        left, group = MARGIN + self.cell, None
        for _, column in part:
            left += GAP if column.group == group else GROUP_GAP
            yield _whole(left)
            left, group = left + self.cell, column.group

    def head(self, part: _Part) -> float:
        """The height of headlines."""
        titles = max(text_height(self._title(column), 8) for _, column in part)
        return _whole(0.27 + titles + (0.17 if any(column.note for _, column in part) else 0.06))

    def height(self, row: Row, part: _Part) -> float:
        """Of a row: two pictures above each other, or one and what is said about it."""
        one = self._cell_height(row)
        texts = sum(line.height for line in self._texts(row, part))
        return _whole(max(2 * one + GAP, one + GAP + texts) + ROW_GAP)

    def _cell_height(self, row: Row) -> float:
        """Of one picture or map."""
        return _whole(self.cell * min(TALLEST, _ratio(row)))

    def _title(self, column: Column) -> str:
        return wrapped(column.title, self.cell, 8)

    def _texts(self, row: Row, part: _Part) -> Iterator[_Line]:
        """What stands under an image, once for all its maps."""
        if part is not self.parts[0]:
            return
        yield _Line(wrapped(row.name, self.cell, 8, bold=True), 8, bold=True)
        if _ratio(row) != row.size[0] / row.size[1]:
            height, width = (round(side) for side in row.size)
            note = f"{width}x{height} pixels, drawn thicker than it is"
            yield _Line(wrapped(note, self.cell, 6.5), 6.5, colour=GREY)
        for network, answer in row.answers:
            if network:
                yield _Line(shortened(network, self.cell, 6.5), 6.5, colour=GREY)
            yield _Line(wrapped(answer, self.cell, 8), 8)

    def draw_head(self, figure: Figure, part: _Part, top: float) -> None:
        """The headlines of groups and columns."""
        placed = list(zip(self.lefts[part], (column for _, column in part), strict=True))
        for group, members in itertools.groupby(placed, key=lambda found: found[1].group):
            lefts = [left for left, _ in members]
            right = lefts[-1] + self.cell
            write(
                figure,
                shortened(group, right - lefts[0], 10, bold=True),
                lefts[0],
                top,
                10,
                bold=True,
            )
            _draw_rule(figure, lefts[0], right, top + 0.21)
        for left, column in placed:
            title = self._title(column)
            below = top + 0.25 + text_height(title, 8)
            write(figure, title, left, top + 0.25)
            write(figure, shortened(column.note, self.cell, 6.5), left, below, 6.5, colour=GREY)

    def draw_row(
        self, figure: Figure, row: Row, part: _Part, limit: float | None, top: float
    ) -> None:
        """An image, and its maps on it and alone."""
        second = top + self._cell_height(row) + GAP
        picture = _enlarged(row.pixels)
        _show(self._axes(figure, row, MARGIN, top), picture)
        below = second
        for line in self._texts(row, part):
            write(figure, line.text, MARGIN, below, line.size, bold=line.bold, colour=line.colour)
            below += line.height
        for left, (number, _) in zip(self.lefts[part], part, strict=True):
            cell = row.cells[number]
            end = limit or max(float(np.nan_to_num(cell.map).max()), 1e-300)
            _show(self._axes(figure, row, left, top), _lit(picture, cell, end))
            alone = self._axes(figure, row, left, second)
            _show(alone, cell.map, cell.place, cmap=COLOURS, norm=Normalize(0, end))

    def _axes(self, figure: Figure, row: Row, left: float, top: float) -> Axes:
        """A place for a picture in its own shape, at the left of a cell."""
        height = self._cell_height(row)
        return _add_axes(figure, left, top, _whole(min(self.cell, height / _ratio(row))), height)


def _ratio(row: Row) -> float:
    """Height over width of the image as it is drawn."""
    return min(1 / THINNEST, max(THINNEST, row.size[0] / row.size[1]))


def _whole(inches: float) -> float:
    """As many as make whole dots."""
    return round(inches * DOTS) / DOTS


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner, without ticks."""
    across, down = figure.get_size_inches()
    place = (left / across, 1 - (top + height) / down, width / across, height / down)
    return figure.add_axes(place, xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0), frame_on=False)


def _show(axes: Axes, values: NDArray[Any], place: Place = Place(), **colours: Any) -> None:  # noqa: B008
    """Pixels or a map over a part of the axes, which are an image wide and high."""
    extent = (place.left, place.right, place.bottom, place.top)
    interpolation = "nearest" if colours else "auto"
    axes.imshow(values, extent=extent, aspect="auto", interpolation=interpolation, **colours)
    axes.set(xlim=(0, 1), ylim=(1, 0))


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A small image with every pixel repeated, so that a map can lie smoothly on it."""
    times = max(1, 256 // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _lit(pixels: NDArray[np.uint8], cell: Cell, end: float) -> NDArray[np.float64]:
    """The image in grey, and on it the map as light in the scale's colours (a photograph's screen
    blending, 1 - (1 - a)(1 - b)), so that both can be seen. (H, W, 3), 0 to 1.
    """
    height, width = pixels.shape[:2]
    dimmed = 0.6 * (pixels @ np.array([0.299, 0.587, 0.114])) / 255
    left, right = (round(share * width) for share in (cell.place.left, cell.place.right))
    top, bottom = (round(share * height) for share in (cell.place.top, cell.place.bottom))
    size = (max(1, right - left), max(1, bottom - top))
    attention = np.nan_to_num(cell.map / end).clip(0, 1).astype(np.float32)
    smooth = Image.fromarray(attention).resize(size, Image.Resampling.BICUBIC)
    light = np.zeros((height, width, 3))
    light[top : top + size[1], left : left + size[0]] = COLOURS(np.asarray(smooth))[..., :3]
    lit: NDArray[np.float64] = 1 - (1 - dimmed[..., None]) * (1 - 0.9 * light)
    return lit


def _draw_rule(figure: Figure, left: float, right: float, top: float) -> None:
    """A thin line under a headline."""
    across, down = figure.get_size_inches()
    height = 1 - top / down
    ends = [left / across, right / across]
    figure.add_artist(Line2D(ends, [height, height], color="#c8c8c8", linewidth=0.7))


def _draw_scale(figure: Figure, limit: float | None, over: bool, top: float, width: float) -> None:
    """The colours and what they stand for; ``over``: whether some values lie beyond their end."""
    length = min(2.9, 0.4 * width)
    axes = _add_axes(figure, MARGIN, top, length, 0.11)
    _show(axes, np.linspace(0, 1, 256)[None], cmap=COLOURS, norm=Normalize(0, 1))
    marks, said = {0.0: "none", 1.0: "most"}, "of each map"
    if limit is not None:
        steps = range(0, round(limit) + 1, math.ceil(limit / 5))
        marks = {step / limit: f"{step}" for step in steps} | {1.0: f"{limit:g}{'+' * over}"}
        said = "attention (1: as if spread evenly over the image)"
    for share, text in marks.items():
        align = {0.0: "left", 1.0: "right"}.get(share, "center")
        write(figure, text, MARGIN + share * length, top + 0.13, 7, align=align)
    room = width - length - 0.12
    write(figure, wrapped(said, room, 7.5), MARGIN + length + 0.12, top + 0.015, 7.5)
