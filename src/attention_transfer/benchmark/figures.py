"""Medians, quartiles and ratios of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Spread", "Strict", "per", "ratio", "spread"]


class Strict(BaseModel):
    """A part of a document: nothing unknown in it, nothing converted, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Spread(Strict):
    """A figure that was measured several times."""

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
    """Median and quartiles; quartiles are of the values themselves, interpolated.

    Raises:
        ValueError: no values.

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


def ratio(above: Sequence[float], *below: Sequence[float]) -> Spread:
    """One measurement over the sum of others, round by round: what slows a whole round down, slows
    both sides of its ratio.

    Raises:
        ValueError: the rounds are not as many on both sides.

    Example:
        >>> ratio([3.0, 8.0], [1.0, 2.0], [0.5, 2.0]).median
        2.0
    """
    return spread([value / sum(others) for value, *others in zip(above, *below, strict=True)])


def per(amount: float, seconds: Sequence[float]) -> list[float]:
    """An amount over each of some times, such as images a second.

    >>> per(10.0, [2.0, 5.0])
    [5.0, 2.0]
    """
    return [amount / time for time in seconds]
