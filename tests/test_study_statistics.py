"""Statistics of studies, against scipy's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attention_transfer.statistics import (
    paired_difference,
    summarize,
    t_quantile,
)

errors = st.lists(st.floats(0, 100), min_size=2, max_size=12)


@given(errors)
def test_summaries_agree_with_scipy(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.median == pytest.approx(np.median(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = scale * stats.t.ppf(0.975, len(values) - 1)
    assert summary.high is not None
    assert summary.high - summary.mean == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_quantiles_of_t_agree_with_scipy(confidence: float) -> None:
    for degrees in (1, 2, 3, 4, 5, 10, 29, 30, 31, 200):
        expected = stats.t.ppf((1 + confidence) / 2, degrees)
        assert t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=10))
def test_paired_differences_agree_with_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    first, second = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    difference = paired_difference(first, second)
    assert difference is not None
    differences = [a - b for a, b in pairs]
    if np.std(differences) < 1e-6:
        return
    test = stats.ttest_rel(list(first.values()), list(second.values()))
    if abs(test.pvalue - 0.05) > 1e-9:
        assert difference.established == (test.pvalue < 0.05)
    interval = test.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(interval), abs=1e-8)


def test_differences_in_words() -> None:
    def words(arm: list[float], baseline: list[float]) -> str:
        difference = paired_difference(dict(enumerate(arm)), dict(enumerate(baseline)))
        assert difference is not None
        return difference.sentence

    assert words([8.0, 8.2, 8.1], [12.0, 12.1, 12.2]).startswith("gain of 4.00 points established")
    assert words([12.0, 12.1, 12.2], [8.0, 8.2, 8.1]).startswith("loss of 4.00 points established")
    assert words([8, 12, 9], [9, 10, 10]).startswith("no difference seen, 95 % interval -4.30 to")
    assert words([8.0], [12.0]) == "-4.00 points for one seed, which has no interval"
    assert paired_difference({0: 1.0}, {1: 2.0}) is None


def test_seeds_that_only_one_arm_has_are_left_out_of_the_difference() -> None:
    difference = paired_difference({0: 1.0, 1: 2.0, 2: 50.0}, {1: 3.0, 0: 2.0, 7: 9.0})
    assert difference is not None
    assert (difference.n, difference.mean) == (2, -1.0)
