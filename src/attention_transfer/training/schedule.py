"""The learning rate as a function of a run's progress: no state, so any step can be resumed."""

import math
from typing import Literal

__all__ = ["learning_rate_factor"]


def learning_rate_factor(schedule: Literal["one-cycle", "step"], progress: float) -> float:
    """Return the factor of the largest learning rate at a share of the run's steps.

    - ``"one-cycle"``: from 1/25 up to 1 over the first 30 %, then down to nearly 0, both along a
      cosine (Smith & Topin, 2018).
    - ``"step"``: x0.2 at 30, 60 and 80 %; in 200 epochs that is after 60, 120 and 160, as in
      the authors' code.

    Args:
        schedule: the name of the schedule.
        progress: the share of the steps that is done, from 0 to 1.

    Example:
        >>> [round(learning_rate_factor("step", share), 3) for share in (0, 0.3, 0.6, 0.8)]
        [1.0, 0.2, 0.04, 0.008]
        >>> [round(learning_rate_factor("one-cycle", share), 3) for share in (0, 0.3, 1)]
        [0.04, 1.0, 0.0]
    """
    if schedule == "step":
        return 0.2 ** sum(progress >= milestone for milestone in (0.3, 0.6, 0.8))
    start, peak, end, peak_at = 1 / 25, 1.0, 1e-5, 0.3
    if progress < peak_at:
        return _cosine(start, peak, progress / peak_at)
    return _cosine(peak, end, (progress - peak_at) / (1 - peak_at))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
