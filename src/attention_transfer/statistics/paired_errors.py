"""The errors of two networks on the same images, compared image by image."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["PairedErrors", "proportion_interval"]

SIGNIFICANCE = 0.05
HALVINGS = 60
"""Steps of a bisection, to the precision of floating-point numbers."""


@dataclass(frozen=True)
class PairedErrors:
    """How many images each of two networks gets wrong that the other gets right.

    Whether the networks differ is decided by those images alone, by McNemar's test in its exact
    form: if they err equally often, each such image is as likely to be one's error as the other's.

    Example:
        >>> few = PairedErrors(images=51, corrected=6, newly_wrong=5)
        >>> few.established, few.sentence
        (False, 'no difference can be told from 51 images (6 corrected, 5 newly wrong; 95 % \
interval of the difference -14.3 to +11.5 points)')
    """

    images: int
    corrected: int
    """Images that the baseline gets wrong and the network right."""
    newly_wrong: int
    """Images that the baseline gets right and the network wrong."""

    @classmethod
    def of(cls, right: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> "PairedErrors":
        """Compare two networks by whether they are right about each image, (N,)."""
        return cls(len(right), int((right & ~baseline).sum()), int((~right & baseline).sum()))

    @property
    def difference(self) -> float:
        """The network's error less the baseline's, in percentage points."""
        return 100 * (self.newly_wrong - self.corrected) / self.images

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, given how many images differ.

        It is Clopper and Pearson's exact one of the share of newly wrong images among them, so it
        excludes 0 exactly where the test finds a difference.
        """
        differing = self.corrected + self.newly_wrong
        low, high = proportion_interval(self.newly_wrong, differing)
        points = 100 * differing / self.images
        return points * (2 * low - 1), points * (2 * high - 1)

    @property
    def established(self) -> bool:
        """Whether a difference is found at the 5 % level."""
        low, high = self.interval
        return not low <= 0 <= high

    @property
    def sentence(self) -> str:
        """The result in words, as part of a sentence."""
        low, high = self.interval
        if self.corrected == self.newly_wrong == 0:
            return f"no difference on {self.images:,} images: the same ones are wrong"
        interval = f"95 % interval of the difference {low:+.1f} to {high:+.1f} points"
        counts = f"{self.corrected:,} corrected, {self.newly_wrong:,} newly wrong"
        if not self.established:
            return f"no difference can be told from {self.images:,} images ({counts}; {interval})"
        word = "fewer" if self.difference < 0 else "more"
        return (
            f"{abs(self.difference):.1f} points {word} errors on {self.images:,} images ({counts}; "
            f"{interval})"
        )


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Clopper and Pearson's 95 % interval of a probability.

    Its bounds are the probabilities at which so many successes, or more (fewer), have a probability
    of 2.5 %.

    >>> low, high = proportion_interval(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    >>> proportion_interval(0, 0)
    (0.0, 1.0)
    """
    low = 0.0 if successes == 0 else 1 - _largest_probability(trials - successes, trials)
    high = 1.0 if successes == trials else _largest_probability(successes, trials)
    return low, high


def _largest_probability(successes: int, trials: int) -> float:
    """Return p at which at most so many successes have a probability of 2.5 %, by bisection."""
    counts = np.arange(successes + 1)
    logs = np.array([math.lgamma(count + 1) for count in range(trials + 1)])
    coefficients = logs[trials] - logs[counts] - logs[trials - counts]
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        terms = coefficients + counts * math.log(middle) + (trials - counts) * math.log1p(-middle)
        low, high = (middle, high) if np.exp(terms).sum() > SIGNIFICANCE / 2 else (low, middle)
    return (low + high) / 2
