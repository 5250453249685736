"""Folders of runs: configuration, record, metrics, attention maps, checkpoints. No torch here
before weights or checkpoints are read or written.
"""

from attention_transfer.runs.attention import RunAttention
from attention_transfer.runs.folder import Run, new_folder, read_runs, writing_to
from attention_transfer.runs.record import EpochMetrics, RunRecord

__all__ = [
    "EpochMetrics",
    "Run",
    "RunAttention",
    "RunRecord",
    "new_folder",
    "read_runs",
    "writing_to",
]
