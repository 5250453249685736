"""The demo's figure: where three networks attend in a few scenes, and what they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from attention_transfer.drawing.scale import COLOURS, Maps, Pixels, check_axes

__all__ = ["SceneMaps", "draw_demo_figure"]

TITLES = {"teacher": "teacher", "alone": "student\nalone", "at": "student\nwith AT"}
HEADLINE = "Where three networks attend to classify the digit in a cluttered scene"
CAPTION = (
    "Bright: much attention (the sum over channels of squared activations). White box: the digit's "
    "position, which no network was given.\n"
    "The student with AT was trained to attend where the teacher does; the student alone was not. "
    "✓ ✗: the network's answer is right or wrong."
)


@dataclass(frozen=True)
class SceneMaps:
    """Scenes of cluttered-digits, with several networks' attention maps and predictions."""

    images: Pixels
    """(N, H, W, 3)."""
    labels: NDArray[np.int64]
    """(N,)."""
    boxes: NDArray[np.integer]
    """(N, 4): left, top, right and bottom of each digit, in pixels."""
    class_names: Sequence[str]
    maps: dict[str, dict[str, Maps]]
    """Network -> level -> maps (N, h, w)."""
    predictions: dict[str, NDArray[np.int64]]
    """Network -> predicted classes (N,)."""

    @property
    def levels(self) -> list[str]:
        """The levels of the maps, from low to top."""
        return list(next(iter(self.maps.values())))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as named arrays, for an ``.npz`` file."""
        arrays: dict[str, NDArray[Any]] = {
            "images": self.images,
            "labels": self.labels,
            "boxes": self.boxes,
            "class_names": np.array(self.class_names),
            "networks": np.array(list(self.maps)),
            "levels": np.array(self.levels),
        }
        for network, levels in self.maps.items():
            arrays |= {f"{network}/{level}": maps for level, maps in levels.items()}
            arrays[f"{network}/predictions"] = self.predictions[network]
        return arrays


def draw_demo_figure(scenes: SceneMaps, path: Path) -> Path:
    """Draw scenes in rows and, in columns, each network's attention at each level.

    Args:
        scenes: what to draw.
        path: the file to write; its suffix is the format (png, svg, pdf).

    Returns:
        The file's path.
    """
    for levels in scenes.maps.values():
        for maps in levels.values():
            check_axes(maps, "N", "H", "W")
    height = 0.95 * len(scenes.images) + 2.0
    figure = Figure(figsize=(11.0, height), dpi=130)
    columns = figure.add_gridspec(
        1,
        1 + len(scenes.levels),
        width_ratios=[1.15, *(len(scenes.maps) for _ in scenes.levels)],
        wspace=0.06,
        left=0.075,
        right=0.99,
        top=1 - 1.35 / height,
        bottom=0.6 / height,
    )
    _draw_scenes(figure, columns[0, 0], scenes)
    for number, level in enumerate(scenes.levels, start=1):
        _draw_level(figure, columns[0, number], scenes, level)
        position = columns[0, number].get_position(figure)
        middle, top = (position.x0 + position.x1) / 2, 1 - 0.72 / height
        figure.text(middle, top, f"{level} level", ha="center", fontsize=11, fontweight="bold")
    figure.text(0.075, 1 - 0.35 / height, HEADLINE, fontsize=13)
    figure.text(0.075, 0.2 / height, CAPTION, fontsize=9, color="#444444")
    figure.savefig(path)
    return path


def _draw_scenes(figure: Figure, cell: SubplotSpec, scenes: SceneMaps) -> None:
    """Draw the column of scenes, with the classes that the networks answer."""
    grid = cell.subgridspec(len(scenes.images), 1, wspace=0.05, hspace=0.05)
    for index, image in enumerate(scenes.images):
        axes = _add_framed_axes(figure, grid[index, 0], scenes, index)
        axes.imshow(image)
        label = _answers(scenes, index)
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        if index == 0:
            axes.set_title("scene", fontsize=9)


def _draw_level(figure: Figure, cell: SubplotSpec, scenes: SceneMaps, level: str) -> None:
    """Draw one level's maps: a column for each network, each map up to its own largest value."""
    grid = cell.subgridspec(len(scenes.images), len(scenes.maps), wspace=0.05, hspace=0.05)
    height, width = scenes.images.shape[1:3]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for column, (network, levels) in enumerate(scenes.maps.items()):
        for index, attention in enumerate(levels[level]):
            axes = _add_framed_axes(figure, grid[index, column], scenes, index)
            axes.imshow(attention, cmap=COLOURS, vmin=0, extent=extent)
            if index == 0:
                axes.set_title(TITLES.get(network, network), fontsize=9)


def _add_framed_axes(figure: Figure, cell: SubplotSpec, scenes: SceneMaps, index: int) -> Axes:
    """Add axes without ticks, with the digit's box drawn on them."""
    axes = figure.add_subplot(cell)
    axes.set_xticks([])
    axes.set_yticks([])
    left, top, right, bottom = scenes.boxes[index]
    for colour, width in (("black", 2.2), ("white", 0.9)):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, color=colour, lw=width)
        )
    return axes


def _answers(scenes: SceneMaps, index: int) -> str:
    """Return a scene's class and each network's answer, marked right or wrong."""
    names, label = scenes.class_names, scenes.labels[index]
    lines = [f"a {names[label]}"]
    for network, predictions in scenes.predictions.items():
        answer = predictions[index]
        short = TITLES.get(network, network).split()[-1]
        lines.append(f"{short}: {names[answer]} {'✓' if answer == label else '✗'}")
    return "\n".join(lines)
