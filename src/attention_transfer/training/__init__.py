"""Whole runs: a network alone, or a student from a teacher."""

from typing import Any

from attention_transfer.config import DistillConfig, TrainConfig
from attention_transfer.training.evaluation import Evaluation, evaluate
from attention_transfer.training.judging import evaluate_model
from attention_transfer.training.loop import resume, run
from attention_transfer.training.progress import RunProgress
from attention_transfer.training.run import Run, new_folder

__all__ = [
    "Evaluation",
    "Run",
    "RunProgress",
    "distill",
    "evaluate",
    "evaluate_model",
    "new_folder",
    "resume",
    "run",
    "train",
]


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
    return run(TrainConfig.checked({"model": model, **settings}), progress)


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
