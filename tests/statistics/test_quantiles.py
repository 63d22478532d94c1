"""Enclosures of quantiles against scipy's binomial distribution, exact fractions and simulated coverage."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.quantiles import (
    enclosing_probability,
    median_interval,
    quantile_interval,
    quantile_n_min,
    tail_quantile,
)


def test_fewer_than_five_values_have_no_interval_of_the_median():
    assert median_interval([1.0, 2.0, 3.0, 4.0]) is None


def test_five_values_say_that_they_reach_less_than_was_asked_for():
    # Five values miss the median only if all lie on one side: 2 / 2^5 = 6.25 %.
    found = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found is not None
    assert (found.low, found.high, found.level) == (1.0, 5.0, 0.9375)


def test_ten_values_leave_one_out_on_either_side_of_the_median():
    # The textbook's 95 % row for n = 10 is the second smallest and second largest, with 97.85 %.
    found = median_interval([float(value) for value in range(1, 11)])
    assert found is not None
    assert (found.low, found.high) == (2.0, 9.0)
    assert found.level == pytest.approx(0.9785, abs=1e-4)


@given(st.integers(6, 60), st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.data())
def test_probabilities_are_sums_of_exact_fractions(count: int, q: float, data: st.DataObject):
    low = data.draw(st.integers(1, count - 1))
    high = data.draw(st.integers(low + 1, count))
    share = Fraction(q)
    exact = sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(low, high))
    assert enclosing_probability(count, (low, high), q=q) == pytest.approx(float(exact), abs=1e-12)


@given(
    st.integers(1, 500), st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]), st.sampled_from([0.8, 0.95, 0.99])
)
@settings(max_examples=40, deadline=None)
def test_ranks_are_the_innermost_whose_tails_scipys_binomial_allows(count: int, q: float, level: float):
    found = quantile_interval([float(value) for value in range(1, count + 1)], q, level=level)
    binomial, tail = scipy.stats.binom(count, q), (1 - level) / 2
    # A slow walk inwards from either end, with the other library's sums.
    low = max((k for k in range(1, count + 1) if binomial.cdf(k - 1) <= tail), default=None)
    high = min((k for k in range(1, count + 1) if binomial.sf(k - 1) <= tail), default=None)
    if low is None or high is None:
        assert found is None
        return
    assert found is not None
    assert (found.low, found.high) == (low, high)
    assert found.level == pytest.approx(binomial.cdf(high - 1) - binomial.cdf(low - 1))
    assert found.level >= level


@pytest.mark.parametrize("q", [0.1, 0.9, 0.95, 0.99])
def test_an_interval_exists_from_the_published_least_count_on(q):
    least = {0.1: 36, 0.9: 36, 0.95: 72, 0.99: 368}[q]
    assert quantile_interval([float(value) for value in range(least - 1)], q) is None
    assert quantile_interval([float(value) for value in range(least)], q) is not None


@pytest.mark.parametrize(("q", "count"), [(0.5, 15), (0.9, 60), (0.99, 500)])
def test_intervals_cover_as_often_as_they_say(q, count):
    # 4000 samples of a skewed distribution whose quantiles are known: Exp(1) has -ln(1 - q).
    generator, truth = np.random.default_rng(11), -np.log(1 - q)
    found = [quantile_interval(list(generator.exponential(size=count)), q) for _ in range(4000)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered == pytest.approx(found[0].level, abs=4 * np.sqrt(0.05 * 0.95 / 4000))
    assert covered > 0.94


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=40), st.randoms())
def test_the_order_of_values_does_not_matter(values: list[float], random):
    shuffled = values[:]
    random.shuffle(shuffled)
    assert median_interval(values) == median_interval(shuffled)
    assert quantile_interval(values, 0.3, level=0.8) == quantile_interval(shuffled, 0.3, level=0.8)


@given(st.lists(st.floats(-1e6, 1e6), min_size=40, max_size=80))
def test_an_upper_quantiles_interval_is_the_mirror_of_a_lower_ones(values: list[float]):
    upper, lower = quantile_interval(values, 0.9), quantile_interval([-value for value in values], 0.1)
    assert upper is not None
    assert lower is not None
    assert (upper.low, upper.high) == (-lower.high, -lower.low)


def test_a_tail_has_no_quantile_until_enough_values_were_seen():
    # The published least counts for two-sided 95 % order-statistic intervals: p90 36, p95 72, p99 368, p99.9 3688.
    assert [quantile_n_min(q) for q in (0.9, 0.95, 0.99, 0.999)] == [36, 72, 368, 3688]
    assert tail_quantile(range(367), 0.99) is None
    # Type 7 on 0..399: position 0.99 * 399 = 395.01.
    assert tail_quantile(range(400), 0.99) == pytest.approx(395.01)
