"""What a person sees while a run goes on: a live panel on a terminal, plain lines everywhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from attention_transfer.terminal import print_line
from attention_transfer.training.monitoring.live_view import LiveView, Moment

__all__ = ["Moment", "RunProgress"]


class RunProgress:
    """Progress of one run after another.

    Args:
        console: where to write; None for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._view: LiveView | None = None
        self._what = ""

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._console is not None:
            print_line(self._console, text)

    def begin(self, what: str, images: int) -> None:
        """A run of a number of images (over all epochs that are left) starts."""
        self._what = what
        if self._console is not None and self._console.is_terminal:
            self._view = LiveView(self._console, what, images)
            self._view.start()

    def step(self, images: int, moment: Moment) -> None:
        """Some more images are done."""
        if self._view is not None:
            self._view.step(images, moment)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """An epoch is done."""
        if self._view is not None:
            self._view.epoch(row["validation_error"])
        terms = " ".join(f"{name} {value:.4f}" for name, value in row["terms"].items())
        self.say(
            f"{self._what} epoch {row['epoch']}/{epochs}: {terms} | "
            f"train error {row['train_error']:.1f} % validation error "
            f"{row['validation_error']:.1f} % | lr {row['lr']:.4f} "
            f"{row['images_per_second']:.0f} images/s, {row['seconds_left']:.0f} s left"
        )

    def end(self) -> None:
        """The run is over, or was broken off."""
        if self._view is not None:
            self._view.stop()
            self._view = None
