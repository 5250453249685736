"""Curves as SVG for the report page: colours come from the page's style sheet, text stays text."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["DASHES", "SERIES", "Line", "draw_curves"]

SERIES = 6
"""Colours in the page's style sheet; further curves repeat them with another dash pattern."""

PIXELS_PER_POINT = 1.2

_DASHES = ("-", "--", ":")
DASHES = len(_DASHES)
_SVG = "http://www.w3.org/2000/svg"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "text.parse_math": False,
}


class Line(NamedTuple):
    """One curve, and its number in the sequence of colours and dash patterns."""

    label: str
    series: int
    x: Sequence[float]
    y: Sequence[float]


def draw_curves(panels: dict[str, list[Line]], *, x: str, y: str, columns: int = 3) -> str:
    """Draw panels of curves with shared axes, as an ``<svg>`` element for a page.

    Args:
        panels: the curves of each panel, by its title.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        columns: panels in a row.

    Returns:
        The element, without ids or style attributes that other parts of a page could collide with.
    """
    rows = -(-len(panels) // columns)
    across = min(columns, len(panels))
    fixed_ids: dict[Any, Any] = {"svg.hashsalt": f"{x} {y} {' '.join(panels)}"}
    with mpl.rc_context(_SETTINGS | fixed_ids):
        figure = Figure(figsize=(3.4 * across + 0.6, 2.5 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, across, squeeze=False, sharex=True, sharey=True)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, title, lines)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel(x, fontsize=11)
        figure.supylabel(y, fontsize=11)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _adapt_to_page(file.getvalue())


def _draw_panel(axes: Axes, title: str, lines: Iterable[Line]) -> None:
    axes.set_title(title, fontsize=11, parse_math=False)
    for line in lines:
        dash = _DASHES[line.series // SERIES % DASHES]
        marker = "." if len(line.x) < 20 else ""
        (drawn,) = axes.plot(line.x, line.y, dash, marker=marker, linewidth=1.8)
        drawn.set_gid(f"series-{line.series % SERIES}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _adapt_to_page(svg: str) -> str:
    """Remove ids that could collide, and style attributes, which the page's policy forbids."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _replace_style(element, used)
    for marker in root.iterfind(f".//{{{_SVG}}}g[@class]//{{{_SVG}}}defs/*"):
        for colour in ("fill", "stroke"):  # inherited from the curve
            marker.attrib.pop(colour, None)
    root.set("class", "plot")
    for side in ("width", "height"):
        points = float(root.get(side, "0").removesuffix("pt"))
        root.set(side, f"{points * PIXELS_PER_POINT:.0f}")
    root.set("aria-hidden", "true")
    return ElementTree.tostring(root, encoding="unicode")


def _replace_style(element: ElementTree.Element, used: set[str]) -> None:
    """Turn an element's style into attributes and classes, and remove its id unless used."""
    name = element.get("id", "")
    if name.startswith("series-"):
        element.set("class", f"series {name}")
    if name not in used:
        element.attrib.pop("id", None)
    style = {
        part.partition(":")[0].strip(): part.partition(":")[2].strip()
        for part in element.attrib.pop("style", "").split(";")
        if ":" in part
    }
    font = style.pop("font", None)
    if font is not None:
        size = re.search(r"([\d.]+)px", font)
        element.set("font-size", size.group(1) if size else "11")
    for key, value in style.items():
        element.set(key, "currentColor" if value in ("#000000", "#262626") else value)
    if element.tag == f"{{{_SVG}}}text" and element.get("fill") is None:
        element.set("fill", "currentColor")
    if element.get("stroke") == "#b0b0b0":  # the colour of matplotlib's grid
        element.set("class", "grid")
