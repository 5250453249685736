"""Where channels, height and width are in what a module puts out.

A convolution puts out (N, C, H, W). Others put channels last, (N, H, W, C); transformers put out
tokens, (N, L, C), of which the first few may stand for no place (class, distillation and register
tokens); a mixer's inner layers (N, C, L).
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["Axes", "Grid", "Layout", "LayoutReader", "surely_channels_first"]

Axes = Literal["NCHW", "NHWC", "NLC", "NCL"]
Grid = tuple[int, int]

EXTRA_TOKENS = (1, 2, 4, 5, 8, 9, 16, 17)
"""Class, distillation and register tokens, as networks have them; other counts are no grid's."""


class Layout(NamedTuple):
    """How to read a tensor as a feature map.

    Example:
        >>> tokens = torch.arange(5.0).view(1, 5, 1)  # a class token, then a grid of 2x2
        >>> Layout("NLC", (2, 2), extra_tokens=1).read(tokens)
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """

    axes: Axes
    grid: Grid
    """Height and width."""
    extra_tokens: int = 0
    """Tokens before those of the grid."""

    @property
    def kind(self) -> Literal["feature map", "tokens"]:
        """What a reader would call it."""
        return "feature map" if "H" in self.axes else "tokens"

    def read(self, output: Tensor) -> Tensor:
        """The tensor as (N, C, H, W), row by row; a view where memory allows."""
        if self.axes == "NCHW":
            return output
        if self.axes == "NHWC":
            return output.movedim(-1, 1)
        if self.axes == "NLC":
            output = output.movedim(-1, 1)
        return output[..., self.extra_tokens :].reshape(*output.shape[:-1], *self.grid)


@dataclass
class LayoutReader:
    """Recognises layouts in one pass of a network, given its outputs in the order they are made.

    Height and width follow the image's. Tokens are as many as a grid seen before has places (the
    patch embedding's, as a rule) or that grid halved, plus the extra ones, which come first.

    Args:
        batch: how many images the pass has.
        image: their height and width.
    """

    batch: int
    image: Grid
    grids: list[Grid] = field(init=False)
    """Those seen, the latest last."""
    token_counts: set[int] = field(default_factory=set, init=False)
    extra_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.grids = [self.image]

    def layout(self, shape: tuple[int, ...], elementwise: bool = False) -> Layout | str:
        """The layout of an output, or the reason why it has none.

        Args:
            shape: of the output.
            elementwise: it is that of a module that keeps its input's shape (dropout, softmax),
                which is no place for a new height and width to begin.
        """
        if not shape or shape[0] != self.batch:
            return "its first axis is not the batch (windows or heads are folded into it)"
        if len(shape) < 3:
            return "it has no places (pooled or flattened)"
        if len(shape) > 4:
            return f"it has {len(shape)} axes"
        found = self._tokens(shape) if len(shape) == 3 else self._map(shape, elementwise)
        if isinstance(found, Layout) and found.grid == (1, 1):
            return "it has one place only"
        return found

    def _map(self, shape: tuple[int, ...], elementwise: bool) -> Layout | str:
        for layout in self.maps(shape, elementwise):
            height, width = layout.grid
            if height == width and height in self.token_counts:
                return "it holds weights between tokens"
            self._see(layout.grid)
            return layout
        return "no two of its axes follow the image's height and width"

    def maps(self, shape: tuple[int, ...], elementwise: bool = False) -> list[Layout]:
        """The ways to read an output with four axes as a feature map, channels first first."""
        _, first, second, third = shape
        layouts = [Layout("NCHW", (second, third)), Layout("NHWC", (first, second))]
        return [
            layout
            for layout in layouts
            if follows_image(layout.grid, self.image)
            and not (elementwise and not self._pooled(layout.grid))
        ]

    def _tokens(self, shape: tuple[int, ...]) -> Layout | str:
        _, first, last = shape
        for axes, count in (("NLC", first), ("NCL", last)):
            found = self._grid_of(count)
            if found is not None and not (axes == "NCL" and found[1]):
                grid, self.extra_tokens = found
                self.token_counts.add(count)
                self._see(grid)
                return Layout("NLC" if axes == "NLC" else "NCL", grid, self.extra_tokens)
        return "none of its axes is as long as a grid seen before"

    def _grid_of(self, count: int) -> tuple[Grid, int] | None:
        """The grid of so many tokens, and how many are extra."""
        seen = [grid for grid in reversed(self.grids) if grid[0] * grid[1] > 1]
        for height, width in seen:
            if count - height * width in (0, self.extra_tokens):
                return (height, width), count - height * width
        square = self.image[0] == self.image[1] and math.isqrt(count) ** 2 == count
        for height, width in seen:
            extra = count - height * width
            if extra in EXTRA_TOKENS and extra <= height * width and not square:
                return (height, width), extra
        for grid in seen:
            while grid[0] * grid[1] > 1:
                grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
                if count - grid[0] * grid[1] in (0, self.extra_tokens):
                    return grid, count - grid[0] * grid[1]
        return None

    def _pooled(self, grid: Grid) -> bool:
        """Whether a grid was seen, or is one that was seen pooled by 2 or 4."""
        return any(
            grid in ((seen[0] // step, seen[1] // step), (-(-seen[0] // step), -(-seen[1] // step)))
            for seen in self.grids
            for step in (1, 2, 4)
        )

    def _see(self, grid: Grid) -> None:
        if grid in self.grids:
            self.grids.remove(grid)
        self.grids.append(grid)


def follows_image(grid: Grid, image: Grid) -> bool:
    """Whether a height and width could be the image's, taken in equal steps along both axes, give
    or take a place at the border.

    >>> follows_image((7, 7), (224, 224)), follows_image((12, 64), (224, 224))
    (True, False)
    """
    if image[0] == image[1]:
        return grid[0] == grid[1]
    steps = [
        (size / (places + 1), size / (places - 1) if places > 1 else math.inf)
        for size, places in zip(image, grid, strict=True)
    ]
    return max(least for least, _ in steps) <= min(most for _, most in steps)


def surely_channels_first(shape: tuple[int, ...], image: Grid) -> bool:
    """Whether an output's shape alone tells that it is (N, C, H, W).

    >>> surely_channels_first((8, 64, 7, 7), (224, 224))
    True
    >>> surely_channels_first((8, 7, 7, 64), (224, 224))
    False
    """
    if len(shape) != 4:
        return False
    _, first, second, third = shape
    return follows_image((second, third), image) and not follows_image((first, second), image)
