"""What a person sees while a run goes on: a bar with rates on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from attention_transfer.terminal import print_line, printable

__all__ = ["RunProgress"]


class RunProgress:
    """Progress of one run after another.

    Args:
        console: where to write; None for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._what = ""

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._console is not None:
            print_line(self._console, text)

    def begin(self, what: str, images: int) -> None:
        """A run of a number of images (over all epochs) starts."""
        self._what = what
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(printable(what), total=images, rate="")

    def step(self, images: int, rate: float) -> None:
        """Some more images are done, at a rate of images per second."""
        if self._bar is not None:
            self._bar.update(self._task, advance=images, rate=f"{rate:.0f} images/s")

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """An epoch is done."""
        terms = " ".join(f"{name} {value:.4f}" for name, value in row["terms"].items())
        self.say(
            f"{self._what} epoch {row['epoch']}/{epochs}: {terms} | "
            f"train error {row['train_error']:.1f} % validation error "
            f"{row['validation_error']:.1f} % | lr {row['lr']:.4f} "
            f"{row['images_per_second']:.0f} images/s, {row['seconds_left']:.0f} s left"
        )

    def end(self) -> None:
        """The run is over, or was broken off."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
