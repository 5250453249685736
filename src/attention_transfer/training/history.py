"""What the epochs of a run say about it: the best one, and whether others may be better."""

from collections.abc import Sequence

from attention_transfer.runs.record import BestEpoch, EpochMetrics

__all__ = ["best_epoch", "best_epoch_of_average", "epochs_without_improvement"]


def best_epoch(rows: Sequence[EpochMetrics]) -> BestEpoch:
    """Return the first epoch with the lowest validation error of the network's own weights."""
    return _lowest({row.epoch: row.validation_error for row in rows})


def best_epoch_of_average(rows: Sequence[EpochMetrics]) -> BestEpoch:
    """Return the first epoch with the lowest validation error of the averaged weights."""
    return _lowest({row.epoch: row.ema["validation_error"] for row in rows if row.ema})


def epochs_without_improvement(rows: Sequence[EpochMetrics]) -> int:
    """Return how many of the last epochs had no new lowest validation error.

    With an average of weights, a new lowest error of either counts.
    """
    best = best_epoch(rows).epoch
    if any(row.ema for row in rows):
        best = max(best, best_epoch_of_average(rows).epoch)
    return len(rows) - best


def _lowest(errors: dict[int, float]) -> BestEpoch:
    epoch = min(errors, key=errors.__getitem__)
    return BestEpoch(epoch=epoch, validation_error=errors[epoch])
