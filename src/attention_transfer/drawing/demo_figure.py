"""Pictures of attention, drawn from raw maps."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

__all__ = ["draw_attention"]

COLOURS = "inferno"
TITLES = {"teacher": "teacher", "alone": "student\nalone", "at": "student\nwith AT"}
HEADLINE = "Where three networks look to tell which digit is in a cluttered scene"
CAPTION = (
    "Bright: much attention (the sum over channels of squared activations). White box: where the "
    "digit is, which no network was told.\n"
    "The student with AT was trained to look where the teacher looks; the student alone was not. "
    "✓ ✗: the network's answer, right or wrong."
)

_Arrays = dict[str, NDArray[Any]]


def draw_attention(maps: Path, picture: Path) -> Path:
    """Scenes in rows; in columns each scene, then where each network looks at each level.

    Args:
        maps: ``attention.npz`` of a demo.
        picture: the file to write; its suffix is the format (png, svg, pdf).

    Returns:
        The picture's path.
    """
    with np.load(maps, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    networks, levels = (found[name].tolist() for name in ("networks", "levels"))
    scenes = len(found["images"])
    height = 0.95 * scenes + 2.0
    figure = Figure(figsize=(11.0, height), dpi=130)
    outer = figure.add_gridspec(
        1,
        1 + len(levels),
        width_ratios=[1.15, *(len(networks) for _ in levels)],
        wspace=0.06,
        left=0.075,
        right=0.99,
        top=1 - 1.35 / height,
        bottom=0.6 / height,
    )
    for place, level in zip(
        (outer[0, n] for n in range(1 + len(levels))), ["scene", *levels], strict=True
    ):
        _draw_level(figure, place, found, level, networks)
        if level != "scene":
            across = place.get_position(figure)
            middle, top = (across.x0 + across.x1) / 2, 1 - 0.72 / height
            figure.text(middle, top, f"{level} level", ha="center", fontsize=11, fontweight="bold")
    figure.text(0.075, 1 - 0.35 / height, HEADLINE, fontsize=13)
    figure.text(0.075, 0.2 / height, CAPTION, fontsize=9, color="#444444")
    figure.savefig(picture)
    return picture


def _draw_level(
    figure: Figure, place: SubplotSpec, found: _Arrays, level: str, networks: list[str]
) -> None:
    """One level's columns, a network each; or the column of scenes."""
    columns = ["scene"] if level == "scene" else networks
    scenes = len(found["images"])
    grid = place.subgridspec(scenes, len(columns), wspace=0.05, hspace=0.05)
    for column, name in enumerate(columns):
        for scene in range(scenes):
            axes = figure.add_subplot(grid[scene, column])
            _frame(axes, found, scene)
            if level == "scene":
                axes.imshow(found["images"][scene])
                _label(axes, found, scene, networks)
            else:
                _draw_map(axes, found[f"{name}/{level}"][scene], found["images"].shape[1:3])
            if scene == 0:
                axes.set_title(TITLES.get(name, name), fontsize=9)


def _frame(axes: Axes, found: _Arrays, scene: int) -> None:
    """No ticks, and the object's box."""
    axes.set_xticks([])
    axes.set_yticks([])
    left, top, right, bottom = found["boxes"][scene]
    for colour, width in (("black", 2.2), ("white", 0.9)):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, color=colour, lw=width)
        )


def _label(axes: Axes, found: _Arrays, scene: int, networks: list[str]) -> None:
    """The true class, and each network's answer with a mark for right or wrong."""
    names, truth = found["class_names"], found["labels"][scene]
    lines = [f"a {names[truth]}"]
    for network in networks:
        answer = found[f"{network}/predictions"][scene]
        title = TITLES[network].split()[-1]
        lines.append(f"{title}: {names[answer]} {'✓' if answer == truth else '✗'}")
    axes.set_ylabel("\n".join(lines), rotation=0, ha="right", va="center", fontsize=8)


def _draw_map(axes: Axes, attention: NDArray[Any], size: tuple[int, int]) -> None:
    """A map over the whole image, black where there is none, bright at its own maximum."""
    height, width = size
    axes.imshow(attention, cmap=COLOURS, vmin=0, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
