"""Whole runs from Python: what the commands ``train``, ``distill`` and ``resume`` do."""

import warnings
from pathlib import Path
from typing import Any

from accelerate import PartialState

from attention_transfer import training
from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.report.page import write_report
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress

__all__ = ["distill", "resume", "run", "train"]


def train(*, model: str, progress: RunProgress | None = None, **settings: Any) -> Run:
    """Trains one network alone, as ``attention-transfer train`` does.

    Args:
        model: a MODEL, such as ``"wrn-16-2"``.
        progress: told about every step; silent by default.
        settings: the flags' words: ``data="cluttered-digits"``, ``epochs=15``, ``lr=0.1``, ...

    Raises:
        InputError: bad settings, before anything is written.
        TrainingError: the loss is not finite.

    Example (2 minutes on two cores)::

        run = at.train(model="wrn-16-2", epochs=22, out="runs/teacher")
        print(run.test_error)
    """
    return run(RunConfig.checked({"student": model, **settings}), progress)


def distill(
    *, teacher: str, student: str, progress: RunProgress | None = None, **settings: Any
) -> Run:
    """Trains a student to look where a teacher looks, as ``attention-transfer distill`` does.

    Args:
        teacher: a MODEL with trained weights, such as a run's folder; or several, by commas, whose
            maps and logits are averaged.
        student: a MODEL, such as ``"wrn-16-1"``.
        progress: told about every step; silent by default.
        settings: the flags' words: ``beta=1000.0``, ``kd_alpha=0.9``, ``epochs=15``, ...

    Raises:
        InputError: bad settings, before anything is written.
        TrainingError: the loss is not finite.

    Example (2 minutes on two cores)::

        run = at.distill(teacher="runs/teacher", student="wrn-16-1", kd_alpha=0.9)
        print(run.test_error)
    """
    config = DistillConfig.checked({"teacher": teacher, "student": student, **settings})
    return run(config, progress)


def run(config: RunConfig, progress: RunProgress | None = None) -> Run:
    """Trains what a configuration asks for, and writes the run's report."""
    return _reported(training.run(config, progress))


def resume(folder: str | Path, progress: RunProgress | None = None) -> Run:
    """Goes on with a run from the end of its last whole epoch, exactly as if never interrupted,
    and writes its report.

    Raises:
        InputError: the folder holds no run, the run is finished, or it has no checkpoint that
            fits its configuration.
    """
    return _reported(training.resume(folder, progress))


def _reported(finished: Run) -> Run:
    """The run with its report; a page that cannot be made is said, and costs no run."""
    if finished.config.report and PartialState().is_main_process:
        try:
            write_report(finished)
        except Exception as error:
            warnings.warn(
                f"the run is finished, but its report could not be written ({error}); try again: "
                f"attention-transfer report {finished.folder}",
                stacklevel=3,
            )
    return finished
