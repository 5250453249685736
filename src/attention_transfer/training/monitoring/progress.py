"""The progress of a run: a live view on a terminal, plain lines everywhere."""

import warnings

from rich.console import Console

from attention_transfer.runs.record import EpochMetrics
from attention_transfer.terminal import print_line
from attention_transfer.training.monitoring.live_view import LiveView, StepFigures

__all__ = ["RunProgress", "StepFigures"]


class RunProgress:
    """Shows the progress of one run after another.

    Args:
        console: the console to write to; None for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._view: LiveView | None = None
        self._network = ""

    def write_line(self, text: str) -> None:
        """Print a line of text."""
        if self._console is not None:
            print_line(self._console, text)

    def write_figures(self, text: str) -> None:
        """Print a line of figures, broken between words where a terminal is narrower."""
        if self._console is None:
            self.write_line(text)
        else:
            print_line(self._console, text, wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning that stands out; without a console, also warn as Python does."""
        if self._console is None:
            warnings.warn(text, stacklevel=2)
            self.write_line(f"WARNING: {text}")
        else:
            print_line(self._console, f"WARNING: {text}", style="bold yellow")

    def begin(self, network: str, images: int) -> None:
        """Show that a run begins.

        Args:
            network: the name of the network that is trained.
            images: to train on, over all epochs that are left.
        """
        self._network = network
        if self._console is not None and self._console.is_terminal:
            self._view = LiveView(self._console, network, images)
            self._view.start()

    def step(self, images: int, figures: StepFigures) -> None:
        """Show the run after a step on so many images."""
        if self._view is not None:
            self._view.step(images, figures)

    def epoch(self, metrics: EpochMetrics, epochs: int) -> None:
        """Show and print the figures of an epoch, one of so many."""
        if self._view is not None:
            self._view.epoch(metrics.validation_error)
        averaged = ""
        if metrics.ema:
            averaged = f" (averaged weights {metrics.ema['validation_error']:.1f} %)"
        terms = " ".join(f"{name} {value:.4f}" for name, value in metrics.terms.items())
        betas = "".join(
            f" | beta of {name} {', '.join(f'{beta:.3g}' for beta in pairs.values())}"
            for name, pairs in metrics.betas.items()
        )
        self.write_figures(
            f"{self._network} epoch {metrics.epoch}/{epochs}: {terms} | "
            f"train error {metrics.train_error:.1f} % validation error "
            f"{metrics.validation_error:.1f} %{averaged}{betas} | lr {_rate(metrics.lr)} "
            f"{metrics.images_per_second:.0f} images/s, {metrics.seconds_left:.0f} s left"
        )

    def end(self) -> None:
        """End the run, finished or not."""
        if self._view is not None:
            self._view.stop()
            self._view = None


def _rate(lr: float) -> str:
    """Return a learning rate to four digits after the point; a small one to its first two.

    >>> _rate(0.05), _rate(0.000123)
    ('0.0500', '0.00012')
    """
    return f"{lr:.4f}" if lr >= 0.001 else f"{lr:.2g}"
