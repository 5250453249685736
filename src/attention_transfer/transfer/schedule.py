"""Schedules of a term's weight over the training."""

import math
import re
from collections.abc import Callable
from numbers import Real
from typing import Literal, TypeGuard, get_args

from attention_transfer.errors import InputError, nearest

__all__ = ["NamedSchedule", "Schedule", "check_schedule", "is_weight", "schedule_factor"]

NamedSchedule = Literal["constant", "linear", "cosine"]
Schedule = NamedSchedule | str | Callable[[float], float]
"""``"constant"``; ``"linear"`` or ``"cosine"``, which fall from 1 to 0; ``"warmup-0.1"``, which
rises from 0 to 1 over the first tenth of the training; or a function from the share of the training
that is done (0 to 1) to the factor of the weight.
"""


def check_schedule(schedule: object) -> None:
    """Raise an InputError unless the schedule is known or a function."""
    if callable(schedule) or (isinstance(schedule, str) and _warmup(schedule) is not None):
        return
    if schedule not in get_args(NamedSchedule):
        raise InputError(
            f"unknown schedule {schedule!r}, expected a name, warmup-SHARE such as warmup-0.1, or "
            "a function of the training's progress; "
            f"{nearest(str(schedule), get_args(NamedSchedule))}"
        )


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """Return the factor of a weight when ``progress`` (0 to 1) of the training is done.

    Raises:
        InputError: the progress is not from 0 to 1, or a function returned something else than a
            finite number of at least 0.

    Example:
        >>> schedule_factor("linear", 0.25), schedule_factor(lambda progress: 2.0, 0.25)
        (0.75, 2.0)
        >>> schedule_factor("warmup-0.5", 0.25), schedule_factor("warmup-0.5", 0.75)
        (0.5, 1.0)
    """
    if not 0 <= progress <= 1:
        raise InputError(
            f"progress is the share of the training that is done, 0 to 1, got {progress!r}; give "
            "step / steps"
        )
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if isinstance(schedule, str):
        share = _warmup(schedule)
        assert share is not None
        return min(1.0, progress / share)
    factor: object = schedule(progress)
    if not is_weight(factor):
        raise InputError(
            f"the schedule must return a finite factor of at least 0, got {factor!r} at progress "
            f"{progress:g}"
        )
    return float(factor)


def is_weight(value: object) -> TypeGuard[Real]:
    """Return whether a value is a finite number of at least 0.

    >>> is_weight(2), is_weight(float("inf")), is_weight("2"), is_weight(True)
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value) and float(value) >= 0


def _warmup(schedule: str) -> float | None:
    """Return the share of the training in which a ``warmup-SHARE`` rises; None of another name."""
    found = re.fullmatch(r"warmup-(0?\.\d{1,9}|1)", schedule)
    share = float(found[1]) if found else 0.0
    return share if share > 0 else None
