import math

import pytest
from scipy.stats import binomtest

from harness.statistics.intervals import mean_interval, normal_quantile, student_quantile, wilson_interval


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3 (score without correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_the_published_score_interval(right, n, low, high):
    interval = mean_interval([1.0] * right + [0.0] * (n - right))
    assert interval.method == "wilson"
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    oracle = binomtest(right, n).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_other_numbers_have_students_interval():
    # mean 3, s² = 10/4, standard error sqrt(2.5/5) = 0.70711, t with 4 degrees of freedom at 97.5 % = 2.776445 (tables)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.method == "student-t"
    assert interval.low == pytest.approx(3 - 2.776445 * math.sqrt(0.5), abs=1e-6)
    assert interval.high == pytest.approx(3 + 2.776445 * math.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0], [0.5], [0.5, 0.5, 0.5]])
def test_what_shows_no_spread_has_no_interval(values):
    assert mean_interval(values) is None


def test_twenty_right_of_twenty_is_no_proof_of_perfection():
    interval = mean_interval([True] * 20)
    assert interval.high == 1
    assert interval.low == pytest.approx(1 - 0.1611, abs=5e-5)  # 0 of 20 mirrored, from the same table


def test_a_mean_of_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        mean_interval([1.0, math.nan])


def test_a_higher_level_gives_a_wider_interval():
    narrow, wide = wilson_interval(30, 100, level=0.9), wilson_interval(30, 100, level=0.99)
    assert wide.low < narrow.low < 0.3 < narrow.high < wide.high
    assert narrow.level == 0.9


def test_quantiles_are_those_of_printed_tables():
    assert normal_quantile(0.99) == pytest.approx(2.575829, abs=1e-6)
    assert student_quantile(0.95, degrees=1) == pytest.approx(12.7062, abs=1e-4)
    assert student_quantile(0.95, degrees=30) == pytest.approx(2.0423, abs=1e-4)


def test_the_score_interval_covers_what_it_says():
    # Exact coverage at p: the binomial probability of the counts whose interval contains p, no simulation needed.
    n = 50
    intervals = [wilson_interval(right, n) for right in range(n + 1)]
    for p in (0.1, 0.25, 0.5, 0.8):
        covered = sum(
            math.comb(n, right) * p**right * (1 - p) ** (n - right)
            for right, interval in enumerate(intervals)
            if interval.low <= p <= interval.high
        )
        assert 0.93 < covered < 0.98
