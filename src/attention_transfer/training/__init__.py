"""Training: whole runs of a network alone, or of a student with a teacher."""

from attention_transfer.training.classification_metrics import Evaluation
from attention_transfer.training.launch import resume, run
from attention_transfer.training.model_evaluation import evaluate_model
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.setup import RunSetup, set_up_run

__all__ = [
    "Evaluation",
    "RunProgress",
    "RunSetup",
    "evaluate_model",
    "resume",
    "run",
    "set_up_run",
]
