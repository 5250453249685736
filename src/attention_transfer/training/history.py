"""What the epochs of a run say about it: the best one, and whether others may be better."""

from collections.abc import Sequence

from attention_transfer.config import RunConfig
from attention_transfer.runs.record import BestEpoch, EpochMetrics

__all__ = ["best_epoch", "best_epoch_of_average", "patience_is_over", "stopped_early"]


def best_epoch(rows: Sequence[EpochMetrics]) -> BestEpoch:
    """Return the first epoch with the lowest validation error of the network's own weights."""
    return _lowest({row.epoch: row.validation_error for row in rows})


def best_epoch_of_average(rows: Sequence[EpochMetrics]) -> BestEpoch:
    """Return the first epoch with the lowest validation error of the averaged weights."""
    return _lowest({row.epoch: row.ema["validation_error"] for row in rows if row.ema})


def patience_is_over(rows: Sequence[EpochMetrics], config: RunConfig) -> bool:
    """Return whether too many of the last epochs had no new lowest validation error.

    With an average of weights, a new lowest error of either counts.

    Args:
        rows: the figures of a run's epochs.
        config: of the run.
    """
    if not rows or config.early_stopping is None:
        return False
    best = best_epoch(rows).epoch
    if any(row.ema for row in rows):
        best = max(best, best_epoch_of_average(rows).epoch)
    return len(rows) - best >= config.early_stopping


def stopped_early(rows: Sequence[EpochMetrics], config: RunConfig) -> str:
    """Return the line that says after which epoch a run stopped early, and why."""
    best = best_epoch(rows)
    return (
        f"stopped early after {len(rows)} of {config.epochs} epochs, without a lower validation "
        f"error in the last {config.early_stopping} (the best: epoch {best.epoch}, "
        f"{best.validation_error:.1f} %); the last weights are written"
    )


def _lowest(errors: dict[int, float]) -> BestEpoch:
    epoch = min(errors, key=errors.__getitem__)
    return BestEpoch(epoch=epoch, validation_error=errors[epoch])
