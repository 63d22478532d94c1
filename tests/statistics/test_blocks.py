import itertools

import numpy as np
import pytest
from scipy import stats

from harness.statistics.blocks import order_effect

# D. C. Montgomery, Design and Analysis of Experiments, example 4.1: yield of vascular grafts at four extrusion
# pressures (rows) in six batches of resin (columns). Published: SS 178.17, 192.25, 109.89; F = 8.11, P = 0.0019.
GRAFTS = [
    [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
    [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
    [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
    [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
]
# M. Hollander and D. A. Wolfe, Nonparametric Statistical Methods, 1973, p. 140: times to round first base in three
# ways, of 22 players, in hundredths of a second.
BASES = np.array(
    [
        [540, 550, 555],
        [585, 570, 575],
        [520, 560, 550],
        [555, 550, 540],
        [590, 585, 570],
        [545, 555, 560],
        [540, 540, 535],
        [545, 550, 535],
        [525, 515, 500],
        [585, 580, 570],
        [525, 520, 510],
        [565, 555, 545],
        [560, 535, 545],
        [505, 500, 495],
        [550, 550, 540],
        [545, 555, 550],
        [555, 555, 535],
        [545, 550, 555],
        [550, 545, 525],
        [565, 560, 540],
        [570, 565, 555],
        [630, 630, 625],
    ]
)


def test_the_textbook_example_has_its_published_f_and_p():
    found = order_effect(GRAFTS)
    assert found.degrees == (3, 15)
    assert found.f == pytest.approx(8.11, abs=0.005)
    assert found.p == pytest.approx(0.0019, abs=5e-5)


def test_the_farthest_apart_are_named_and_held_against_the_studentized_range():
    found = order_effect(GRAFTS)
    # means 92.82, 91.68, 88.92, 85.77; q = 7.05 / sqrt(7.33 / 6) = 6.38, beyond the table's 5.25 for 1 % at (4, 15)
    assert (found.lowest, found.highest) == (3, 0)
    assert found.difference == pytest.approx(7.05)
    assert found.tukey_p < 0.01
    # scaled so that q falls to the table's 4.08 for 5 % at (4, 15): the means shrink, the residuals stay
    scores = np.array(GRAFTS)
    means = scores.mean(1, keepdims=True)
    shrunk = scores - means + (means - scores.mean()) * 4.08 / 6.3785
    assert order_effect(shrunk.tolist()).tukey_p == pytest.approx(0.05, abs=5e-4)


def test_two_treatments_are_a_paired_t_test():
    found, oracle = order_effect(GRAFTS[:2]), stats.ttest_rel(GRAFTS[0], GRAFTS[1])
    assert found.f == pytest.approx(oracle.statistic**2)
    assert found.p == pytest.approx(oracle.pvalue)
    assert found.tukey_p == pytest.approx(oracle.pvalue, abs=1e-6)
    assert found.friedman_p is None


def test_friedmans_test_gives_the_published_p():
    # chi-squared 11.143 on 2 degrees of freedom: p = exp(-11.143 / 2) = 0.0038
    assert order_effect(BASES.T.tolist()).friedman_p == pytest.approx(0.003805, abs=5e-6)


def test_permuting_within_blocks_gives_nearly_the_same_p():
    # All 6^4 ways to hand the three numbers of four seeds to three orders; the share with an F at least as large.
    scores = np.array([[0.50, 0.61, 0.43, 0.55], [0.53, 0.60, 0.47, 0.58], [0.56, 0.66, 0.46, 0.59]])
    found = order_effect(scores.tolist())
    block = [list(itertools.permutations(column)) for column in scores.T]
    totals = [np.sum(np.sum(each, axis=0) ** 2) for each in itertools.product(*block)]
    # For fixed numbers in every block F grows with the sum of the treatments' squared totals.
    seen = np.sum(scores.sum(1) ** 2)
    share = np.mean(np.array(totals) >= seen - 1e-12)
    assert found.p < 0.05
    assert share == pytest.approx(found.p, abs=0.02)


def test_a_shift_of_a_whole_block_changes_nothing():
    shifted = np.array(GRAFTS) + np.arange(6) * 10.0
    assert order_effect(shifted.tolist()).f == pytest.approx(order_effect(GRAFTS).f)


def test_seeds_that_all_give_the_same_differences_leave_nothing_to_test_with():
    found = order_effect([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.4, 0.5, 0.6]])
    assert (found.f, found.p, found.tukey_p) == (None, None, None)
    assert "no error" in found.reason
    assert found.difference == pytest.approx(0.3)


def test_equal_scores_have_no_ranks():
    found = order_effect([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert found.friedman_p is None
    assert found.f is None
