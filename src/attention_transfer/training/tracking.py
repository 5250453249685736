"""What experiment trackers are told of a run, through Accelerate's: every epoch's figures, pictures
of where the networks look, and the configuration.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)
from numpy.typing import NDArray

from attention_transfer.config import read_config_file
from attention_transfer.errors import InputError
from attention_transfer.training.contact_sheet import contact_sheets

__all__ = ["Tracking", "check_installed", "scalars"]

PROJECT = "attention-transfer"
"""Where runs are gathered, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another place."""

GROUPS = {"terms": "term", "attention_agreement": "agreement"}
"""Keys of metrics.jsonl whose figures go by another word."""

LEFT_OUT = ("step", "seconds", "seconds_left")
