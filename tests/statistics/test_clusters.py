"""Cluster-robust means against scipy, a slow jackknife-like derivation, and degenerate cases."""

import math

import numpy as np
import pytest
import scipy.stats

from harness.statistics.clusters import ratio_of_sums


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
