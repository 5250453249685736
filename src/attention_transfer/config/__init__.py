"""Configurations: complete, typed, checked when made. No torch here.

A field's name is the same word on the command line (``--batch-size``), in a file
(``batch_size: 64``) and in Python (``batch_size=64``); its description is the flag's help.
"""

from attention_transfer.config.checked import AnyConfig, Config
from attention_transfer.config.fields import (
    Count,
    Interpolation,
    Positive,
    Precision,
    height_and_width,
    low_and_high,
)
from attention_transfer.config.images import ImagesConfig
from attention_transfer.config.runs import (
    DistillConfig,
    RunConfig,
    TrainingConfig,
    flag_of,
)
from attention_transfer.config.tools import (
    BenchmarkConfig,
    CacheConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    MapsConfig,
    PointsConfig,
    PredictConfig,
)

__all__ = [
    "AnyConfig",
    "BenchmarkConfig",
    "CacheConfig",
    "Config",
    "Count",
    "DemoConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExportConfig",
    "PredictConfig",
    "ImagesConfig",
    "Interpolation",
    "MapsConfig",
    "PointsConfig",
    "Positive",
    "Precision",
    "RunConfig",
    "TrainingConfig",
    "flag_of",
    "height_and_width",
    "low_and_high",
]
