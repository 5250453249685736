"""The learning rate as a function of a run's progress: no state, so any step can be resumed."""

import math
from typing import Literal

__all__ = ["learning_rate_factor"]


def learning_rate_factor(
    schedule: Literal["one-cycle", "step", "cosine"], progress: float, warmup: float | None = None
) -> float:
    """Return the factor of the largest learning rate at a share of the run's steps.

    - ``"one-cycle"``: from 1/25 up to 1 over the warmup, then down to nearly 0, both along a
      cosine (Smith & Topin, 2018).
    - ``"step"``: x0.2 at 30, 60 and 80 %; in 200 epochs that is after 60, 120 and 160, as in
      the authors' code.
    - ``"cosine"``: after the warmup from 1 down to 0 along a cosine (Loshchilov & Hutter, 2017).

    The warmup of the last two is linear, from 1/100.

    Args:
        schedule: the name of the schedule.
        progress: the share of the steps that is done, from 0 to 1.
        warmup: the share of the steps over which the rate rises, below 1; None: 0.3 for
            ``"one-cycle"``, 0 for the others.

    Example:
        >>> [round(learning_rate_factor("step", share), 3) for share in (0, 0.3, 0.6, 0.8)]
        [1.0, 0.2, 0.04, 0.008]
        >>> [round(learning_rate_factor("one-cycle", share), 3) for share in (0, 0.3, 1)]
        [0.04, 1.0, 0.0]
        >>> [round(learning_rate_factor("cosine", share, 0.1), 3) for share in (0, 0.1, 0.55, 1)]
        [0.01, 1.0, 0.5, 0.0]
    """
    if schedule == "one-cycle":
        start, peak, end, peak_at = 1 / 25, 1.0, 1e-5, 0.3 if warmup is None else warmup
        if progress < peak_at:
            return _cosine(start, peak, progress / peak_at)
        return _cosine(peak, end, (progress - peak_at) / (1 - peak_at))
    warmup = warmup or 0.0
    if progress < warmup:
        return 0.01 + 0.99 * progress / warmup
    if schedule == "cosine":
        return _cosine(1.0, 0.0, (progress - warmup) / (1 - warmup))
    return 0.2 ** sum(progress >= milestone for milestone in (0.3, 0.6, 0.8))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
