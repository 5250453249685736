"""The panel that a terminal shows while a run goes on."""

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

__all__ = ["LiveView", "Moment"]

DRAWN_A_SECOND = 2

WIDE, WIDEST = 72, 100
"""Columns at which terms and agreement stand side by side, and at most."""

MARGIN = 4
"""Columns left free at the right, where a terminal writes ^C: in a full line it would begin a
new one, and a line of the panel would stay behind.
"""


@dataclass(frozen=True)
class Moment:
    """A run after one of its steps. Tensors are read when they are drawn, and only then: a step
    does not wait for them.
    """

    epoch: int
    epochs: int
    step: int
    """Of this epoch, from 1."""
    steps: int
    images_per_second: float
    lr: float
    images: int
    """Of this epoch so far, by this process."""
    wrong: Tensor | float
    """How many of them."""
    terms: Mapping[str, Tensor]
    """At this step."""
    agreement: Mapping[str, Tensor]
    """By pair, when it was last measured."""


class LiveView:
    """A run's figures on a terminal, drawn anew a few times a second by a thread of its own.

    Args:
        console: a terminal.
        what: the network.
        images: of the run, over all epochs that are left.
        clock: seconds.
    """

    def __init__(
        self, console: Console, what: str, images: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.images, self.clock = what, images, clock
        self.done, self.began = 0, clock()
        self.first: tuple[float, int] | None = None
        """When the first step, the slowest, was done; and how many images it had."""
        self.moment: Moment | None = None
        self.validation = "no validation error yet"
        self._live = Live(self, console=console, refresh_per_second=DRAWN_A_SECOND, transient=True)

    def start(self) -> None:
        """Shows it, below whatever is printed from now on."""
        self._live.start()

    def stop(self) -> None:
        """Takes it away."""
        self._live.stop()

    def step(self, images: int, moment: Moment) -> None:
        """Some more images are done."""
        self.done += images
        self.moment = moment
        self.first = self.first or (self.clock(), self.done)

    def epoch(self, validation_error: float) -> None:
        """An epoch is done."""
        self.validation = f"last validation error {validation_error:.1f} %"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The panel at the width there is."""
        width = min(WIDEST, options.max_width - MARGIN)
        title = Text(escape_control_characters(self.what))
        title.truncate(width - 6, overflow="ellipsis")  # a longer one would widen the panel
        lines = Group(*self._lines(wide=width >= WIDE))
        yield Panel(lines, title=title, title_align="left", width=width)

    def _lines(self, wide: bool) -> Iterator[RenderableType]:
        moment, separator = self.moment, "  ·  " if wide else "\n"
        clocks = f"{_clock(self.clock() - self.began)} elapsed, {self._left()} left"
        yield _bar(self.done, self.images)
        if moment is None:
            yield Text(f"getting ready{separator}{clocks}")
            return
        where = f"epoch {moment.epoch}/{moment.epochs}, step {moment.step}/{moment.steps}"
        yield Text(f"{where}{separator}{clocks}")
        yield Text(f"{moment.images_per_second:.0f} images/s{separator}lr {moment.lr:.4g}")
        error = 100 * float(moment.wrong) / max(1, moment.images)
        yield Text(f"train error {error:.1f} % so far{separator}{self.validation}\n")
        parts = [_figures("term", moment.terms, ".4g")]
        if moment.agreement:
            parts.append(_figures("attention agreement", moment.agreement, ".3f"))
        yield _beside(parts) if wide else Group(*parts)

    def _left(self) -> str:
        """By the steps done so far, and what came between them."""
        if self.first is None or self.done <= self.first[1]:
            return "-:--:--"
        began, before = self.first
        seconds = (self.clock() - began) / (self.done - before)
        return _clock(seconds * max(0, self.images - self.done))


def _bar(done: int, images: int) -> Table:
    """With the share in percent."""
    total = max(1, images)
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=total, completed=done), Text(f"{100 * done // total} %"))
    return bar


def _figures(heading: str, figures: Mapping[str, Tensor], form: str) -> Table:
    """Names and values; long names go on in the next line."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(heading, overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for name, value in figures.items():
        table.add_row(Text(escape_control_characters(name)), Text(format(float(value), form)))
    return table


def _beside(parts: list[Table]) -> Table:
    table = Table.grid(padding=(0, 6))
    table.add_row(*parts)
    return table


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
