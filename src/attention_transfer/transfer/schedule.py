"""Schedules of a term's weight over the training."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from attention_transfer.errors import InputError, nearest

__all__ = ["NamedSchedule", "Schedule", "check_schedule", "schedule_factor"]

NamedSchedule = Literal["constant", "linear", "cosine"]
Schedule = NamedSchedule | Callable[[float], float]
"""``"constant"``; ``"linear"`` or ``"cosine"``, which fall from 1 to 0; or a function from the
share of the training that is done (0 to 1) to the factor of the weight.
"""


def check_schedule(schedule: object) -> None:
    """Raise an InputError unless the schedule is known or a function."""
    if not callable(schedule) and schedule not in get_args(NamedSchedule):
        raise InputError(
            f"unknown schedule {schedule!r}, expected a name or a function of the training's "
            f"progress; {nearest(str(schedule), get_args(NamedSchedule))}"
        )


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """Return the factor of a weight when ``progress`` (0 to 1) of the training is done.

    Raises:
        InputError: a function returned something else than a finite number of at least 0.

    Example:
        >>> schedule_factor("linear", 0.25), schedule_factor(lambda progress: 2.0, 0.25)
        (0.75, 2.0)
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    assert callable(schedule)
    factor = schedule(progress)
    try:
        factor = float(factor)
    except (TypeError, ValueError):
        factor = math.nan
    if not (factor >= 0 and math.isfinite(factor)):
        raise InputError(
            f"the schedule must return a finite factor of at least 0, got {schedule(progress)!r} "
            f"at progress {progress:g}"
        )
    return factor
