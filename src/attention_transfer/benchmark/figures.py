"""Medians, quartiles and ratios of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Spread", "Strict", "milliseconds", "ratio", "spread"]


class Strict(BaseModel):
    """A part of a document: unknown keys, type conversions, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Spread(Strict):
    """The median and quartiles of a quantity that was measured in several rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        if not self.lower_quartile <= self.median <= self.upper_quartile:
            raise ValueError("the median must lie between the quartiles")
        return self


def spread(values: Sequence[float]) -> Spread:
    """Return the median and quartiles of values; quartiles interpolate between values.

    Raises:
        ValueError: there are no values.

    Example:
        >>> spread([4.0, 1.0, 3.0, 2.0, 5.0])
        Spread(median=3.0, lower_quartile=2.0, upper_quartile=4.0, rounds=5)
    """
    if not values:
        raise ValueError("got no values, expected at least one")
    if len(values) == 1:
        (only,) = values
        return Spread(median=only, lower_quartile=only, upper_quartile=only, rounds=1)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, lower_quartile=lower, upper_quartile=upper, rounds=len(values))


def milliseconds(times: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Return the spread of each list of times, converted from seconds to milliseconds.

    >>> milliseconds({"step": [0.5, 1.5]})["step"].median
    1000.0
    """
    return {name: spread([1000 * time for time in seconds]) for name, seconds in times.items()}


def ratio(numerator: Sequence[float], *denominators: Sequence[float]) -> Spread:
    """Return the spread of one measurement over the sum of others, divided round by round.

    Whatever slows a whole round down slows both sides of its ratio, and cancels.

    Raises:
        ValueError: the measurements differ in their number of rounds.

    Example:
        >>> ratio([3.0, 8.0], [1.0, 2.0], [0.5, 2.0]).median
        2.0
    """
    rounds = zip(numerator, *denominators, strict=True)
    return spread([value / sum(others) for value, *others in rounds])
