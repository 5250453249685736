"""When a run saves its state: often enough to lose little, seldom enough to cost little."""

import time
from pathlib import Path
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.errors import TrainingError
from attention_transfer.runs.checkpoints import Checkpoint, save_checkpoint

__all__ = ["Checkpointing"]

LARGEST_SHARE = 0.01
"""Of the time, that checkpoints may take."""


class Checkpointing:
    """The checkpoints of one run, in its main process.

    One is due every ``checkpoint_steps``, or else after ``checkpoint_minutes`` and at the end of an
    epoch, but never so soon that checkpoints would take more than 1 % of the time.

    Args:
        folder: of the checkpoints.
        config: of the run.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.steps = folder, config.checkpoint_steps
        self.seconds = 60 * config.checkpoint_minutes
        self.cost = 0.0
        """Seconds that the last checkpoint took."""
        self.number: int | None = None
        """Of the checkpoint that the run was resumed from or wrote last."""
        self._saved: tuple[int, int] | None = None
        self._last = time.monotonic()

    def due(self, step: int, end_of_epoch: bool = False) -> bool:
        """Return whether to save now, after so many steps of the run."""
        if self.steps is not None:
            return step % self.steps == 0
        elapsed = time.monotonic() - self._last
        shortest = self.cost / LARGEST_SHARE
        return elapsed >= (shortest if end_of_epoch else max(self.seconds, shortest))

    def save(self, epoch: int, step: int, state: dict[str, Any]) -> None:
        """Save a run's state after some whole epochs and steps, and note what that cost.

        The state that it has saved last is not written a second time, as after an error.

        Raises:
            TrainingError: it cannot be written; the last one is intact.
        """
        if (epoch, step) == self._saved:
            return
        began = time.monotonic()
        try:
            checkpoint = Checkpoint(epoch, step, state)
            self.number = save_checkpoint(self.folder, checkpoint, after=self.number)
        except OSError as error:
            raise TrainingError(
                f"cannot write a checkpoint to {self.folder}: {error.strerror or error}; the one "
                "before is intact. Make room, then resume the run"
            ) from None
        self._saved, self._last = (epoch, step), time.monotonic()
        self.cost = self._last - began
