"""Whether a difference of errors is more than chance: over seeds, and over images."""

from attention_transfer.statistics.over_seeds import (
    PairedDifference,
    Summary,
    paired_difference,
    summarize,
    t_quantile,
)
from attention_transfer.statistics.paired_errors import PairedErrors, proportion_interval

__all__ = [
    "PairedDifference",
    "PairedErrors",
    "Summary",
    "paired_difference",
    "proportion_interval",
    "summarize",
    "t_quantile",
]
