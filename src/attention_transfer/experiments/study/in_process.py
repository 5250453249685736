"""Run the runs of a study one after the other in this process."""

from collections.abc import Sequence
from pathlib import Path

from attention_transfer import training
from attention_transfer.errors import InputError, TrainingError, first_line
from attention_transfer.experiments.study.plan import PlannedRun
from attention_transfer.experiments.study.workers import Ended
from attention_transfer.training import RunProgress

__all__ = ["InProcess"]


class InProcess:
    """Runs each run in this process when it is begun.

    Args:
        study: the study's folder.
        progress: shows the progress of each run.
    """

    def __init__(self, study: Path, progress: RunProgress) -> None:
        self.study = study
        self.progress = progress
        self._last: list[Ended] = []

    @property
    def free(self) -> bool:
        """Whether another run can be begun now."""
        return not self._last

    def begin(self, run: PlannedRun) -> None:
        """Train or resume a run.

        Raises:
            Interrupted: a signal ended it; its state is saved.
        """
        error = ""
        try:
            training.run(run.config(self.study), self.progress, resume_or_start=True)
        except (InputError, TrainingError, OSError) as fault:
            error = first_line(fault)
        self._last.append(Ended(run, error))

    def ended(self, timeout: float) -> Sequence[Ended]:
        """Return the run that has ended since the last call."""
        ended, self._last = self._last, []
        return ended

    def stop(self) -> None:
        """Do nothing: no run goes on after ``begin``."""
