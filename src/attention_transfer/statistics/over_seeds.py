"""Statistics of errors over seeds: mean, median, spread, and intervals by Student's t."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["PairedDifference", "Summary", "paired_difference", "summarize", "t_quantile"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Errors of one arm over seeds, in percent."""

    n: int
    mean: float
    median: float
    std: float | None
    """The sample standard deviation; None for one seed."""
    low: float | None
    """Of the mean's 95 % interval; None for one seed."""
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Errors of an arm less those of a baseline, seed by seed, in percentage points."""

    n: int
    """Seeds that both have."""
    mean: float
    low: float | None
    """Of the mean's 95 % interval; None for one seed."""
    high: float | None

    @property
    def established(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def sentence(self) -> str:
        """The result in words."""
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f} points for one seed, which has no interval"
        interval = f"95 % interval {self.low:+.2f} to {self.high:+.2f}"
        if not self.established:
            return f"no difference seen, {interval}"
        word = "gain" if self.mean < 0 else "loss"
        return f"{word} of {abs(self.mean):.2f} points established, {interval}"


def summarize(errors: Sequence[float]) -> Summary:
    """Return the summary of errors over seeds.

    The interval is mean ± t * s / sqrt(n), with s the sample standard deviation and t the 97.5 %
    quantile of Student's distribution with n - 1 degrees of freedom.

    Args:
        errors: one for each seed, in percent; at least one.

    >>> summary = summarize([1.0, 2.0, 3.0])
    >>> summary.mean, summary.median, summary.std, round(summary.high, 2)
    (2.0, 2.0, 1.0, 4.48)
    """
    mean, median = statistics.mean(errors), statistics.median(errors)
    if len(errors) < 2:
        return Summary(len(errors), mean, median, None, None, None)
    std = statistics.stdev(errors)
    half = t_quantile(CONFIDENCE, len(errors) - 1) * std / math.sqrt(len(errors))
    return Summary(len(errors), mean, median, std, mean - half, mean + half)


def paired_difference(
    errors: Mapping[int, float], baseline: Mapping[int, float]
) -> PairedDifference | None:
    """Return the difference of two arms, paired by seed; None without a seed in common.

    Args:
        errors: of the arm, by seed, in percent.
        baseline: of the arm it is compared with.

    >>> difference = paired_difference({0: 8.0, 1: 8.5, 2: 8.2}, {0: 12.1, 1: 12.4, 2: 12.0})
    >>> round(difference.mean, 2), difference.established
    (-3.93, True)
    """
    seeds = [seed for seed in errors if seed in baseline]
    if not seeds:
        return None
    summary = summarize([errors[seed] - baseline[seed] for seed in seeds])
    return PairedDifference(summary.n, summary.mean, summary.low, summary.high)


def t_quantile(confidence: float, degrees: int) -> float:
    """Return t such that a Student variable lies in (-t, t) with a probability.

    Found by bisection of the distribution's finite series for whole degrees of freedom
    (Abramowitz & Stegun, 26.7.3 and 26.7.4).

    Args:
        confidence: the probability, between 0 and 1.
        degrees: of freedom, at least 1.

    >>> round(t_quantile(0.95, 4), 4), round(t_quantile(0.95, 1), 3)
    (2.7764, 12.706)
    """
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if _probability_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _probability_within(t: float, degrees: int) -> float:
    """Return the probability that a Student variable lies in (-t, t)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
