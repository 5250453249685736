"""Whether predicted classes have anything to do with the labels."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["Agreement", "agreement", "agreement_of_shares"]


class Agreement(NamedTuple):
    """Errors in percent, and what they say about the classifier."""

    error: float
    chance_error: float
    """Of answers of the same frequencies that have nothing to do with the images."""
    beyond_chance: bool
    """Better than chance by three standard deviations or more."""
    at_chance: bool
    """Not beyond chance; and with two standard deviations more still less than half way to perfect,
    so that the images were enough to tell.
    """
    weak: bool
    """Less than half way from chance to perfect."""


def agreement(predicted: Tensor, labels: Tensor) -> Agreement:
    """Compare predicted classes (N,) with labels (N,).

    The share of right answers a is set against e, that of independent answers: Cohen's kappa is
    (a - e) / (1 - e) (Educational and Psychological Measurement, 1960). A constant answer has the
    kappa 0, however frequent its class is.

    Args:
        predicted: classes; a negative one is wrong.
        labels: classes.

    Example:
        >>> labels = torch.arange(300) % 3
        >>> agreement(labels, labels).error, agreement(torch.zeros(300), labels).at_chance
        (0.0, True)
    """
    answers, truth = predicted.numpy().astype(np.int64), labels.numpy()
    count = len(truth)
    right = float((answers == truth).mean())
    classes = int(max(answers.max(), truth.max())) + 1
    answered = np.bincount(answers[answers >= 0], minlength=classes) / count
    expected = float(answered @ np.bincount(truth, minlength=classes)) / count
    return agreement_of_shares(right, expected, count)


def agreement_of_shares(right: float, expected: float, count: int) -> Agreement:
    """Compare the share of right answers with that of answers by chance, over ``count`` images."""
    if expected == 1:  # a single class, always right: chance is as good
        return Agreement(0.0, 0.0, beyond_chance=True, at_chance=False, weak=False)
    spread = np.sqrt(expected * (1 - expected) / count)
    doubt = 2 * np.sqrt(right * (1 - right) / count)
    beyond_chance = right > expected and right - expected >= 3 * spread
    return Agreement(
        error=100 - 100 * right,
        chance_error=100 - 100 * expected,
        beyond_chance=bool(beyond_chance),
        at_chance=bool(not beyond_chance and (right + doubt - expected) / (1 - expected) < 0.5),
        weak=(right - expected) / (1 - expected) < 0.5,
    )
