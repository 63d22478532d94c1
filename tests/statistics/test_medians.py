"""Medians' enclosures against scipy's binomial distribution."""

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.statistics.medians import enclosing_probability, median_interval


def test_fewer_than_five_values_have_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0]) is None


def test_five_values_say_that_they_reach_less_than_was_asked_for():
    # Five values miss the median only if all lie on one side: 2 / 2^5 = 6.25 %.
    found = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found is not None
    assert (found.low, found.high, found.level) == (1.0, 5.0, 0.9375)


def test_ten_values_leave_one_out_on_either_side():
    # The textbook's 95 % row for n = 10 is the second smallest and second largest, with 97.85 %.
    found = median_interval([float(value) for value in range(1, 11)])
    assert found is not None
    assert (found.low, found.high) == (2.0, 9.0)
    assert found.level == pytest.approx(0.9785, abs=1e-4)


@given(st.integers(6, 60), st.data())
def test_probabilities_are_those_of_a_fair_coin(count: int, data: st.DataObject):
    k = data.draw(st.integers(1, count // 2))
    expected = scipy.stats.binom.cdf(count - k, count, 0.5) - scipy.stats.binom.cdf(k - 1, count, 0.5)
    assert enclosing_probability(count, k) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=40), st.randoms())
def test_the_order_of_values_does_not_matter(values: list[float], random):
    shuffled = values[:]
    random.shuffle(shuffled)
    assert median_interval(values) == median_interval(shuffled)
