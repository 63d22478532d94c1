"""Cluster-robust means against scipy, a slow jackknife-like derivation, and degenerate cases."""

import math

import numpy as np
import pytest
import scipy.stats

from harness.statistics.clusters import ClusteredPairs, clustered_difference, clustered_retention, ratio_of_sums
from harness.statistics.contrasts import Pairs
from harness.statistics.noninferiority import loss_test
from harness.statistics.paired import difference, retention


def test_equal_clusters_give_the_ordinary_t_interval_of_their_means():
    # With n tokens in each of G windows sum(y)/sum(n) is the mean of window means and residuals are n(mean_g - mean).
    values = np.array([2.0, 3.5, 1.0, 4.0, 2.5])
    found = ratio_of_sums(values * 10, np.full(5, 10))
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert found.interval() == pytest.approx((low, high))


def test_clusters_of_unequal_size_weigh_by_their_size():
    # R = (1 + 9) / (1 + 3) = 2.5; residuals 1 - 2.5 = -1.5 and 9 - 7.5 = 1.5; SE = sqrt(2/1 * 4.5) / 4 = 0.75.
    found = ratio_of_sums([1.0, 9.0], [1.0, 3.0])
    assert found.value == 2.5
    assert found.standard_error == pytest.approx(0.75)


def test_one_cluster_has_no_interval():
    assert ratio_of_sums([3.0], [2.0]).interval() is None


def test_clusters_without_spread_claim_no_certainty():
    assert ratio_of_sums([5.0, 5.0, 5.0], [5.0, 5.0, 5.0]).interval() is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # 2000 draws of 8 windows: the standard deviation of a coverage of 0.95 is 0.005, so five of them is 0.025.
    rng = np.random.default_rng(0)
    sizes = np.full(8, 255.0)
    hits = 0
    for window_means in rng.normal(3.0, 0.4, size=(2000, 8)):
        low, high = ratio_of_sums(window_means * sizes, sizes).interval() or (math.inf, -math.inf)
        hits += low <= 3.0 <= high
    assert abs(hits / 2000 - 0.95) < 0.025


def table(both=0, won=0, lost=0, neither=0):
    own = (1.0,) * (both + won) + (0.0,) * (lost + neither)
    return Pairs(own, (1.0,) * both + (0.0,) * won + (1.0,) * lost + (0.0,) * neither)


def partial(n, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    y = generator.uniform(0.2, 1, n)
    return Pairs(tuple(scale * np.clip(y * generator.normal(0.95, 0.1, n), 0, 1)), tuple(scale * y))


def slow_variance(pairs, names, keep):
    """CR1 by its definition: residuals summed by cluster in a loop, squared, times G / (G - 1), over n²."""
    z = [x - keep * y for x, y in zip(pairs.candidate, pairs.reference, strict=True)]
    mean, sums = sum(z) / len(z), {}
    for name, value in zip(names, z, strict=True):
        sums[name] = sums.get(name, 0.0) + value - mean
    return len(sums) / (len(sums) - 1) * sum(value**2 for value in sums.values()) / len(z) ** 2


NAMES = [("a", "b", "c", "d", "e", "f", "g")[i * i % 11 % 7] for i in range(40)]


@pytest.mark.parametrize("keep", [0.0, 0.9, 1.0, 1.3])
def test_the_variance_is_that_of_the_clusters_sums(keep):
    pairs = partial(40, 1)
    found = ClusteredPairs.of(pairs, NAMES).variance(1.0, keep)
    assert found == pytest.approx(slow_variance(pairs, NAMES, keep), rel=1e-9)


def test_retention_over_clusters_solves_fiellers_quadratic():
    # Directly: every θ with (x̄ - θ ȳ)² <= t² V(θ). V is a quadratic, so three of its values give its coefficients.
    pairs = partial(40, 2)
    own, other = np.mean(pairs.candidate), np.mean(pairs.reference)
    thetas = np.array([0.0, 1.0, 2.0])
    t = scipy.stats.t.ppf(0.975, len(set(NAMES)) - 1)
    gaps = [(own - theta * other) ** 2 - t**2 * slow_variance(pairs, NAMES, theta) for theta in thetas]
    expected = sorted(np.roots(np.polyfit(thetas, gaps, 2)))
    found = clustered_retention(pairs, NAMES)
    assert found.value == pytest.approx(own / other)
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, rel=1e-8)
    assert found.interval.method == "fieller-cr1-t"


def test_a_difference_over_clusters_has_their_t_interval():
    pairs = partial(40, 2)
    value = np.mean(pairs.candidate) - np.mean(pairs.reference)
    reach = scipy.stats.t.ppf(0.975, len(set(NAMES)) - 1) * math.sqrt(slow_variance(pairs, NAMES, 1.0))
    found = clustered_difference(pairs, NAMES)
    assert (found.interval.low, found.interval.high) == pytest.approx((value - reach, value + reach), rel=1e-9)


def test_clusters_of_one_item_give_the_intervals_of_independent_items():
    # With one item a cluster G / (G - 1) Σ (z - z̄)² / n² is s² / n itself.
    pairs, names = partial(30, 4), list(map(str, range(30)))
    for found, plain in (
        (clustered_retention(pairs, names), retention([pairs])),
        (clustered_difference(pairs, names), difference(pairs)),
    ):
        assert found.interval.low == pytest.approx(plain.interval.low, rel=1e-6)
        assert found.interval.high == pytest.approx(plain.interval.high, rel=1e-6)


@pytest.mark.parametrize("pairs", [table(300, 6, 10, 184), table(80, 0, 0, 20), partial(60, 5)])
@pytest.mark.parametrize("interval", [clustered_retention, clustered_difference])
def test_asking_every_item_twice_does_not_shrink_an_interval(pairs, interval):
    names = list(map(str, range(pairs.n)))
    once = interval(pairs, names).interval
    again = interval(Pairs(pairs.candidate * 2, pairs.reference * 2), names * 2).interval
    assert again.high - again.low >= (once.high - once.low) * 0.999


def test_questions_that_share_a_fate_widen_the_interval():
    generator = np.random.default_rng(6)
    lost = np.repeat(generator.random(60) < 0.1, 5)
    pairs = Pairs(tuple((~lost).astype(float)), (1.0,) * 300)
    names = [f"{i // 5}" for i in range(300)]
    # A cluster's sum is five times its fate: 60/59 * 25 Σ d² against 300/299 * 5 Σ d².
    ratio = ClusteredPairs.of(pairs, names).variance(1.0, 1.0) / ClusteredPairs.of(pairs).variance(1.0, 1.0)
    assert ratio == pytest.approx(5 * (60 / 59) / (300 / 299))
    found, plain = clustered_retention(pairs, names).interval, retention([pairs]).interval
    assert found.high - found.low > 2 * (plain.high - plain.low)


def test_answers_that_never_differ_leave_room_in_clusters_too():
    found = clustered_retention(table(both=60, neither=40), [f"{i // 2}" for i in range(100)])
    assert found.value == 1
    assert found.interval.low < retention([table(both=60, neither=40)]).interval.low


@pytest.mark.parametrize("interval", [clustered_retention, clustered_difference])
def test_a_clustered_interval_ends_where_the_test_rejects(interval):
    pairs, names = table(60, 2, 5, 33), [f"{i % 25}" for i in range(100)]
    found = interval(pairs, names).interval
    margin, scale = (1 - found.low, "retention") if interval is clustered_retention else (-found.low, "difference")
    assert loss_test([pairs], margin=margin, scale=scale, clusters=[tuple(names)]).p_accept == pytest.approx(0.025)


def test_one_cluster_of_pairs_has_no_interval():
    assert clustered_retention(partial(9, 1), ["a"] * 9).interval is None
    assert "single cluster" in clustered_difference(partial(9, 1), ["a"] * 9).reason


def test_a_clustered_reference_that_scored_nothing_has_nothing_to_keep():
    assert clustered_retention(table(won=3, neither=5), list("aabbccdd")).value is None


def test_points_without_a_scale_or_a_spread_have_no_interval():
    found = clustered_difference(Pairs((8.0, 7.0, 9.0), (9.0, 8.0, 10.0)), ["a", "b", "c"])
    assert found.value == pytest.approx(-1)
    assert "spread" in found.reason
