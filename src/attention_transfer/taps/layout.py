"""Layouts of module outputs: which axes are channels, and which are spatial.

A convolution's output is (N, C, H, W). Others put channels last, (N, H, W, C); transformers have
tokens, (N, L, C), of which the first few may stand for no position (class, distillation and
register tokens); a mixer's inner layers (N, C, L). Of signals a feature map is (N, C, L) itself,
and of volumes and videos (N, C, D, H, W).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = [
    "ALL_TOKENS",
    "Axes",
    "Grid",
    "Layout",
    "LayoutReader",
    "channels_first",
    "surely_channels_first",
]

ALL_TOKENS = "#all-tokens"
"""End of a point's name that is read as it is, (N, L, C): the extra tokens with the others."""

Axes = Literal["NCHW", "NHWC", "NLC", "NCL", "NCDHW", "NDHWC", "as it is"]
Grid = tuple[int, ...]
"""One length for each spatial axis: height and width of an image."""

EXTRA_TOKENS = (1, 2, 4, 5, 8, 9, 16, 17)
"""Counts of class, distillation and register tokens that networks have; others are no grid's."""

_CHANNELS_FIRST: dict[int, Axes] = {1: "NCL", 2: "NCHW", 3: "NCDHW"}
_CHANNELS_LAST: dict[int, Axes] = {1: "NLC", 2: "NHWC", 3: "NDHWC"}


class Layout(NamedTuple):
    """The order of a tensor's axes, to read it as a feature map.

    Example:
        >>> tokens = torch.arange(5.0).view(1, 5, 1)  # a class token, then a grid of 2x2
        >>> Layout("NLC", (2, 2), extra_tokens=1).read(tokens)
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """

    axes: Axes
    grid: Grid
    """The length of each spatial axis."""
    extra_tokens: int = 0
    """How many tokens come before those of the grid."""

    @property
    def kind(self) -> Literal["feature map", "tokens"]:
        """The kind of output: ``feature map`` or ``tokens``."""
        return "feature map" if "H" in self.axes or len(self.grid) == 1 else "tokens"

    def read(self, output: Tensor) -> Tensor:
        """Return the tensor as (N, C, *grid); a view where memory allows."""
        if self.axes in ("NCHW", "NCDHW", "as it is"):
            return output
        if self.axes in ("NHWC", "NDHWC"):
            return output.movedim(-1, 1)
        if self.axes == "NLC":
            output = output.movedim(-1, 1)
        return output[..., self.extra_tokens :].reshape(*output.shape[:-1], *self.grid)


def channels_first(grid: Grid) -> Layout:
    """Return the layout of a feature map (N, C, *grid).

    >>> channels_first((7, 7)).axes
    'NCHW'
    """
    return Layout(_CHANNELS_FIRST[len(grid)], grid)


@dataclass
class LayoutReader:
    """Recognises layouts in one forward pass, from the outputs in the order they are made.

    The spatial axes follow the input's. Tokens are as many as an earlier grid has positions (the
    patch embedding's, as a rule) or that grid halved, plus the extra ones, which come first.

    Args:
        batch: the number of images in the pass.
        image: the length of each of their spatial axes.
    """

    batch: int
    image: Grid
    grids: list[Grid] = field(init=False)
    """The grids of the outputs so far, the latest last."""
    token_counts: set[int] = field(default_factory=set, init=False)
    extra_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.grids = [self.image]

    def layout(
        self, shape: tuple[int, ...], elementwise: bool = False, channels_first: bool = False
    ) -> Layout | str:
        """Return the layout of an output, or the reason why it has none.

        Args:
            shape: of the output.
            elementwise: whether its module keeps the input's shape (dropout, softmax), so that no
                new grid can begin there.
            channels_first: whether its module is one whose axis 1 holds the channels (Conv1d).
        """
        axes = len(self.image)
        if not shape or shape[0] != self.batch:
            return "its first axis is not the batch (windows or heads are folded into it)"
        if len(shape) < 3:
            return "it has no positions (pooled or flattened)"
        if len(shape) not in (3, axes + 2):
            return f"it has {len(shape)} axes"
        as_map = len(shape) == axes + 2
        layout = (
            self._map(shape, elementwise)
            if as_map
            else self._tokens(shape, elementwise, channels_first)
        )
        if isinstance(layout, Layout) and math.prod(layout.grid) == 1:
            return "it has one position only"
        return layout

    def _map(self, shape: tuple[int, ...], elementwise: bool) -> Layout | str:
        for layout in self.maps(shape, elementwise):
            if len(set(layout.grid)) == 1 and layout.grid[0] in self.token_counts:
                return "it holds weights between tokens"
            self._see(layout.grid)
            return layout
        return "no axes of it follow the input's spatial axes"

    def maps(self, shape: tuple[int, ...], elementwise: bool = False) -> list[Layout]:
        """Return the ways to read an output as a feature map, channels first first."""
        axes = len(self.image)
        layouts = [
            channels_first(shape[2:]),
            Layout(_CHANNELS_LAST[axes], shape[1:-1]),
        ]
        return [
            layout
            for layout in layouts
            if follows_image(layout.grid, self.image)
            and not (elementwise and not self._pooled(layout.grid))
        ]

    def _tokens(
        self, shape: tuple[int, ...], elementwise: bool, channels_first: bool
    ) -> Layout | str:
        _, first, last = shape
        for axes, count in (("NLC", first), ("NCL", last))[channels_first:]:
            found = self._grid_of(count, halved=not elementwise)
            if found is not None and not (axes == "NCL" and found[1]):
                grid, self.extra_tokens = found
                self.token_counts.add(count)
                self._see(grid)
                return Layout("NLC" if axes == "NLC" else "NCL", grid, self.extra_tokens)
        return "none of its axes is as long as an earlier grid"

    def _grid_of(self, count: int, halved: bool) -> tuple[Grid, int] | None:
        """Return the grid of so many tokens, and how many of them are extra.

        Args:
            count: of the tokens.
            halved: whether it may be an earlier grid halved, once or more.
        """
        earlier = [grid for grid in reversed(self.grids) if math.prod(grid) > 1]
        for grid in earlier:
            if count - math.prod(grid) in (0, self.extra_tokens):
                return grid, count - math.prod(grid)
        square = len(set(self.image)) == 1 and math.isqrt(count) ** 2 == count
        for grid in earlier:
            extra = count - math.prod(grid)
            if extra in EXTRA_TOKENS and extra <= math.prod(grid) and not square:
                return grid, extra
        for grid in earlier if halved else ():
            while math.prod(grid) > 1:
                grid = tuple((length + 1) // 2 for length in grid)
                if count - math.prod(grid) in (0, self.extra_tokens):
                    return grid, count - math.prod(grid)
        return None

    def _pooled(self, grid: Grid) -> bool:
        """Return whether a grid is an earlier one, or an earlier one pooled by 2 or 4."""
        return any(
            grid
            in (
                tuple(length // step for length in seen),
                tuple(-(-length // step) for length in seen),
            )
            for seen in self.grids
            for step in (1, 2, 4)
        )

    def _see(self, grid: Grid) -> None:
        if grid in self.grids:
            self.grids.remove(grid)
        self.grids.append(grid)


def follows_image(grid: Sequence[int], image: Sequence[int]) -> bool:
    """Return whether a grid could be the image's, taken in equal steps along all axes.

    A position at the border may be left out or added. The first of three axes is depth or time,
    which networks subsample by steps of their own; a single axis is no longer than the signal's.

    Example:
        >>> follows_image((7, 7), (224, 224)), follows_image((12, 64), (224, 224))
        (True, False)
    """
    if len(image) != 2:
        shorter = all(length <= whole + 1 for length, whole in zip(grid, image, strict=True))
        return shorter and (len(image) == 1 or follows_image(grid[1:], image[1:]))
    if image[0] == image[1]:
        return grid[0] == grid[1]
    steps = [
        (size / (places + 1), size / (places - 1) if places > 1 else math.inf)
        for size, places in zip(image, grid, strict=True)
    ]
    return max(least for least, _ in steps) <= min(most for _, most in steps)


def surely_channels_first(shape: tuple[int, ...], image: Sequence[int]) -> bool:
    """Return whether an output's shape alone tells that it is (N, C, *S).

    >>> surely_channels_first((8, 64, 7, 7), (224, 224))
    True
    >>> surely_channels_first((8, 7, 7, 64), (224, 224))
    False
    """
    if len(shape) != len(image) + 2:
        return False
    return follows_image(shape[2:], image) and not follows_image(shape[1:-1], image)
