"""Two networks compared image by image: McNemar's exact test and its interval."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_transfer.statistics import PairedErrors, proportion_interval


def at_most(successes: int, trials: int, p: float) -> float:
    """P(X <= successes) of a binomial, summed in full."""
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes + 1))


def mcnemar(first: int, second: int) -> float:
    """The two-sided p-value: twice the smaller tail of a fair coin."""
    return min(1.0, 2 * at_most(min(first, second), first + second, 0.5))


counts = st.integers(0, 60)


@given(counts, counts)
def test_a_difference_is_established_where_mcnemars_test_finds_it(first: int, second: int) -> None:
    value = mcnemar(first, second)
    if abs(value - 0.05) < 1e-9:
        return
    assert PairedErrors(1000, first, second).established == (value < 0.05)


@given(st.integers(0, 80), st.integers(1, 80))
def test_the_interval_has_the_tails_of_clopper_and_pearson(successes: int, more: int) -> None:
    trials = successes + more
    low, high = proportion_interval(successes, trials)
    assert at_most(successes, trials, high) == pytest.approx(0.025, rel=1e-6)
    if successes:
        assert 1 - at_most(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)


@given(counts, counts)
def test_the_other_way_round_is_the_mirror_image(first: int, second: int) -> None:
    one, other = PairedErrors(200, first, second), PairedErrors(200, second, first)
    assert one.difference == -other.difference
    np.testing.assert_allclose(one.interval, [-value for value in other.interval[::-1]], atol=1e-9)
    low, high = one.interval
    assert low - 1e-9 <= one.difference <= high + 1e-9


def test_images_are_counted_from_what_is_right() -> None:
    right = np.array([True, True, False, False, True])
    baseline = np.array([True, False, True, False, False])
    assert PairedErrors.of(right, baseline) == PairedErrors(5, corrected=2, newly_wrong=1)


def test_the_sentence_says_what_the_test_found() -> None:
    assert PairedErrors(1000, 60, 21).sentence.startswith("3.9 points fewer errors on 1,000 images")
    assert PairedErrors(1000, 21, 60).sentence.startswith("3.9 points more errors on 1,000 images")
    assert PairedErrors(51, 1, 2).sentence.startswith("no difference can be told from 51 images")
    assert PairedErrors(51, 0, 0).sentence == "no difference on 51 images: the same ones are wrong"


def test_many_images_take_no_time() -> None:
    low, high = PairedErrors(1_000_000, 40_000, 50_000).interval
    assert 0.9 < low < 1.0 < high < 1.1
