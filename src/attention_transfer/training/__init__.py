"""Whole runs: a network alone, or a student from a teacher."""

from attention_transfer.runs.folder import Run, new_folder
from attention_transfer.training.evaluate import evaluate_model
from attention_transfer.training.evaluation import Evaluation
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.trainer import resume, run

__all__ = [
    "Evaluation",
    "Run",
    "RunProgress",
    "evaluate_model",
    "new_folder",
    "resume",
    "run",
]
