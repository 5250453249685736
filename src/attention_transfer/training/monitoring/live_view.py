"""The live view of a run on a terminal: a panel with its latest figures."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from attention_transfer.terminal import escape_control_characters

__all__ = ["LiveView", "StepFigures"]

REFRESHES_PER_SECOND = 2

WIDE, WIDEST = 72, 100
"""Columns from which terms and agreement are side by side, and the largest width of the panel."""

MARGIN = 4
"""Columns left free at the right, where a terminal writes ^C: in a full line it would wrap, and a
line of the panel would not be erased.
"""


@dataclass(frozen=True)
class StepFigures:
    """The figures of a run after one of its steps.

    Tensors are read only when the view is drawn, so that a step does not wait for its device.
    """

    epoch: int
    epochs: int
    step: int
    """Of this epoch, from 1."""
    steps: int
    images_per_second: float
    lr: float
    images: int
    """Images of this epoch so far, in this process."""
    wrong: Tensor | float
    """How many of them were classified wrongly."""
    terms: Mapping[str, Tensor]
    """Term name -> its weighted value at this step."""
    agreement: Mapping[str, Tensor]
    """Layer pair -> attention agreement when it was last measured; may be empty."""


class LiveView:
    """A panel on a terminal, redrawn a few times per second by its own thread.

    Args:
        console: the terminal.
        title: the name of the network.
        images: to train on, over all epochs that are left.
        clock: returns seconds.
    """

    def __init__(
        self, console: Console, title: str, images: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.images, self.clock = title, images, clock
        self.done, self.began = 0, clock()
        self.first_step: tuple[float, int] | None = None
        """The time after the first step, which is the slowest, and its number of images."""
        self.figures: StepFigures | None = None
        self.validation = "no validation error yet"
        self._live = Live(
            self, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )

    def start(self) -> None:
        """Show the panel, below everything that is printed from now on."""
        self._live.start()

    def stop(self) -> None:
        """Erase the panel from the terminal."""
        self._live.stop()

    def step(self, images: int, figures: StepFigures) -> None:
        """Show the figures of a step on so many images."""
        self.done += images
        self.figures = figures
        self.first_step = self.first_step or (self.clock(), self.done)

    def epoch(self, validation_error: float) -> None:
        """Show the validation error of an epoch, in percent."""
        self.validation = f"last validation error {validation_error:.1f} %"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the panel at the console's width."""
        width = min(WIDEST, options.max_width - MARGIN)
        title = Text(escape_control_characters(self.title))
        title.truncate(width - 6, overflow="ellipsis")  # a longer one would widen the panel
        lines = Group(*self._lines(wide=width >= WIDE))
        yield Panel(lines, title=title, title_align="left", width=width)

    def _lines(self, wide: bool) -> Iterator[RenderableType]:
        figures, separator = self.figures, "  ·  " if wide else "\n"
        clocks = f"{_clock(self.clock() - self.began)} elapsed, {self._time_left()} left"
        yield _bar(self.done, self.images)
        if figures is None:
            yield Text(f"getting ready{separator}{clocks}")
            return
        step = f"epoch {figures.epoch}/{figures.epochs}, step {figures.step}/{figures.steps}"
        yield Text(f"{step}{separator}{clocks}")
        yield Text(f"{figures.images_per_second:.0f} images/s{separator}lr {figures.lr:.4g}")
        error = 100 * float(figures.wrong) / max(1, figures.images)
        yield Text(f"train error {error:.1f} % so far{separator}{self.validation}\n")
        tables = [_table("term", figures.terms, ".4g")]
        if figures.agreement:
            tables.append(_table("attention agreement", figures.agreement, ".3f"))
        yield _side_by_side(tables) if wide else Group(*tables)

    def _time_left(self) -> str:
        """Estimate the time left from the rate since the first step, validation included."""
        if self.first_step is None or self.done <= self.first_step[1]:
            return "-:--:--"
        began, before = self.first_step
        seconds = (self.clock() - began) / (self.done - before)
        return _clock(seconds * max(0, self.images - self.done))


def _bar(done: int, images: int) -> Table:
    """Return a progress bar with the share in percent."""
    total = max(1, images)
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=total, completed=done), Text(f"{100 * done // total} %"))
    return bar


def _table(heading: str, values: Mapping[str, Tensor], form: str) -> Table:
    """Return a table of names and values; long names continue on the next line."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(heading, overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for name, value in values.items():
        table.add_row(Text(escape_control_characters(name)), Text(format(float(value), form)))
    return table


def _side_by_side(tables: list[Table]) -> Table:
    grid = Table.grid(padding=(0, 6))
    grid.add_row(*tables)
    return grid


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
