"""Whole runs: a network alone, or a student from a teacher."""

from attention_transfer.training.evaluation import Evaluation
from attention_transfer.training.judging import evaluate_model
from attention_transfer.training.loop import resume, run
from attention_transfer.training.progress import RunProgress
from attention_transfer.training.run import Run, new_folder

__all__ = [
    "Evaluation",
    "Run",
    "RunProgress",
    "evaluate_model",
    "new_folder",
    "resume",
    "run",
]
