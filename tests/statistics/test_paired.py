import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.statistics.contrasts import Pairs
from harness.statistics.paired import chance_corrected_retention, difference, mcnemar, retention

Z = 1.959963984540054


def table(both=0, won=0, lost=0, neither=0, chance=None):
    own = (1.0,) * (both + won) + (0.0,) * (lost + neither)
    other = (1.0,) * both + (0.0,) * won + (1.0,) * lost + (0.0,) * neither
    return Pairs(own, other, chance)


CAVO = table(59, 6, 16, 80)
BENTUR = table(1, 1, 7, 12)
AGRESTI_MIN = table(53, 16, 8, 9)


@pytest.mark.parametrize(
    ("pairs", "value", "low", "high"),
    [
        # Cavo et al. 2012 as in the tests of R's contingencytables 3.0 (after the book by Fagerland et al.,
        # 2017); Bentur et al. 2009 as in those of R's ratesci, after the same authors' paper of 2014.
        (CAVO, 0.8667, 0.7476, 0.9876),
        (BENTUR, 0.25, 0.065, 0.907),
    ],
)
def test_retention_of_right_or_wrong_items_has_the_published_tang_interval(pairs, value, low, high):
    found = retention([pairs])
    assert found.interval.method == "tang-score"
    assert found.value == pytest.approx(value, abs=5e-5)
    assert found.interval.low == pytest.approx(low, abs=5e-4)
    assert found.interval.high == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize(
    ("pairs", "value", "low", "high"),
    [
        (CAVO, -0.0621, -0.1240, -0.0054),
        (BENTUR, -0.286, -0.517, -0.026),
        (AGRESTI_MIN, 8 / 86, -0.020, 0.207),  # Agresti and Min 2005, in the tests of R's ratesci
    ],
)
def test_a_difference_has_the_published_tango_interval(pairs, value, low, high):
    found = difference(pairs)
    assert found.interval.method == "tango-score"
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.interval.low == pytest.approx(low, abs=5e-4)
    assert found.interval.high == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize("right", [1, 10, 500])
def test_answers_that_never_differ_still_leave_room_for_loss(right):
    # With b = c = 0 Tang's statistic is -sqrt(a (θ - 1)) above 1 and sqrt(a (1 - θ) / θ) below; setting each to z:
    found = retention([table(both=right, neither=40)])
    assert found.value == 1
    assert found.interval.low == pytest.approx(right / (right + Z**2), rel=1e-6)
    assert found.interval.high == pytest.approx((right + Z**2) / right, rel=1e-6)


def test_a_difference_of_answers_that_never_differ_is_bounded():
    # Tango's statistic with b = c = 0 is D sqrt(n) / sqrt(|D| (1 - |D|)): D = z² / (n + z²).
    found = difference(table(both=30, neither=70))
    assert found.interval.high == pytest.approx(Z**2 / (100 + Z**2), rel=1e-6)
    assert found.interval.low == pytest.approx(-(Z**2) / (100 + Z**2), rel=1e-6)


def test_nothing_kept_is_a_ratio_of_zero_with_an_upper_end():
    found = retention([table(lost=10, neither=5)])
    assert found.value == found.interval.low == 0
    # With a = c = 0 the candidate's right answers and the reference's are two Poisson-like counts of 0 and 10 of 15.
    assert 0.1 < found.interval.high < 1


@pytest.mark.parametrize("tasks", [[table(won=3, neither=9)], [Pairs((0.5, 0.2), (0.0, 0.0))]])
def test_a_reference_that_scored_nothing_has_nothing_to_keep(tasks):
    found = retention(tasks)
    assert found.value is None
    assert found.interval is None
    assert "nothing to keep" in found.reason


COUNTS = st.tuples(st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0, 60))


@settings(max_examples=60, deadline=None)
@given(COUNTS)
def test_swapping_the_two_models_turns_the_interval_over(counts):
    both, won, lost, neither = counts
    ours, theirs = retention([table(both, won, lost, neither)]), retention([table(both, lost, won, neither)])
    assert ours.value == pytest.approx(1 / theirs.value)
    assert ours.interval.low == pytest.approx(1 / theirs.interval.high, rel=1e-5)
    assert ours.interval.high == pytest.approx(1 / theirs.interval.low, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.randoms(use_true_random=False))
def test_the_order_of_items_changes_nothing(counts, random):
    pairs = table(*counts)
    shuffled = list(zip(pairs.candidate, pairs.reference, strict=True))
    random.shuffle(shuffled)
    assert retention([Pairs(*map(tuple, zip(*shuffled, strict=True)))]) == retention([pairs])


@settings(max_examples=60, deadline=None)
@given(COUNTS)
def test_an_interval_contains_its_estimate(counts):
    found, shift = retention([table(*counts)]), difference(table(*counts))
    assert found.interval.low <= found.value <= found.interval.high
    assert shift.interval.low <= shift.value <= shift.interval.high


def fieller(x, y, level=0.95):
    """The textbook quadratic: (ȳ² - t² s_yy/n) θ² - 2 (x̄ȳ - t² s_xy/n) θ + (x̄² - t² s_xx/n) <= 0."""
    n = len(x)
    t2 = stats.t.ppf(0.5 + level / 2, n - 1) ** 2 / n
    cov = np.cov(x, y)
    a, b, c = (
        np.mean(y) ** 2 - t2 * cov[1, 1],
        np.mean(x) * np.mean(y) - t2 * cov[0, 1],
        np.mean(x) ** 2 - t2 * cov[0, 0],
    )
    if a <= 0:
        return None
    root = math.sqrt(b * b - a * c)
    return (b - root) / a, (b + root) / a


def test_partial_credit_has_fiellers_interval():
    generator = np.random.default_rng(7)
    y = generator.uniform(0.2, 1, 40)
    x = np.clip(y * generator.normal(0.9, 0.1, 40), 0, 1)
    found = retention([Pairs(tuple(x), tuple(y))])
    assert found.interval.method == "fieller-t"
    assert (found.interval.low, found.interval.high) == pytest.approx(fieller(x, y), rel=1e-6)


def test_a_reference_that_may_be_zero_gives_no_bounds():
    x, y = (0.9, 0.1, 0.4, 0.2), (0.0, 0.01, 0.0, 0.9)
    assert fieller(x, y) is None
    found = retention([Pairs(x, y)])
    assert found.value == pytest.approx(1.6 / 0.91)
    assert found.interval is None
    assert "bounds" in found.reason


def test_partial_credit_in_one_proportion_shows_no_spread():
    found = retention([Pairs((0.25, 0.5, 0.125), (0.5, 1.0, 0.25))])
    assert found.value == pytest.approx(0.5)
    assert found.interval is None
    assert "spread" in found.reason


def test_a_difference_of_partial_credit_has_the_paired_t_interval():
    x, y = (0.9, 0.5, 0.4, 0.2, 0.7), (1.0, 0.4, 0.6, 0.3, 0.8)
    expected = stats.ttest_rel(x, y).confidence_interval(0.95)
    found = difference(Pairs(x, y))
    assert found.interval.method == "paired-t"
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_several_tasks_give_a_ratio_of_sums_and_never_a_mean_of_ratios():
    good, poor = table(80, 2, 8, 10), table(1, 3, 1, 95)
    found = retention([good, poor])
    # (0.82 + 0.04) / (0.88 + 0.02); the mean of 0.82/0.88 and 0.04/0.02 would be 1.47
    assert found.value == pytest.approx(0.86 / 0.90)
    assert found.interval.method == "stratified-score"


def test_weights_are_those_of_the_tasks():
    good, poor = table(80, 2, 8, 10), table(40, 3, 1, 56)
    found = retention([good, poor], weights=[3, 1])
    assert found.value == pytest.approx((3 * 0.82 + 0.43) / (3 * 0.88 + 0.41))


def test_many_items_in_several_tasks_agree_with_a_stratified_bootstrap():
    generator = np.random.default_rng(3)
    tasks = [table(3000, 200, 300, 1500), table(1200, 150, 250, 2400)]
    tops, bottoms = np.zeros(20000), np.zeros(20000)
    for task in tasks:
        both, won, lost, _ = generator.multinomial(task.n, np.array(task.counts) / task.n, size=20000).T
        tops, bottoms = tops + (both + won) / task.n, bottoms + (both + lost) / task.n
    low, high = np.quantile(tops / bottoms, [0.025, 0.975])
    found = retention(tasks)
    # The task-wise null variance may only widen; 20 000 draws know an end to about a fiftieth of the interval's width.
    assert found.interval.low == pytest.approx(low, abs=0.02 * (high - low))
    assert found.interval.high == pytest.approx(high, abs=0.02 * (high - low))


def test_right_or_wrong_tasks_join_tasks_of_partial_credit():
    generator = np.random.default_rng(5)
    y = generator.uniform(0.2, 1, 30)
    x = np.clip(y + generator.normal(-0.05, 0.1, 30), 0, 1)
    found = retention([table(40, 3, 5, 30), Pairs(tuple(x), tuple(y))])
    assert found.value == pytest.approx((43 / 78 + x.mean()) / (45 / 78 + y.mean()))
    assert found.interval.low < found.value < found.interval.high


def test_counting_from_chance_shows_what_four_options_hide():
    # 0.60 against 0.80 is 75 % of the score, and (0.60 - 0.25) / (0.80 - 0.25) = 64 % of what was above guessing.
    pairs = table(300, 0, 100, 100, chance=0.25)
    assert retention([pairs]).value == pytest.approx(0.75)
    found = chance_corrected_retention([pairs])
    assert found.value == pytest.approx(0.35 / 0.55)
    assert found.interval.low < 0.35 / 0.55 < found.interval.high


def test_counting_from_a_chance_of_zero_changes_nothing():
    plain, corrected = retention([CAVO]), chance_corrected_retention([table(59, 6, 16, 80, chance=0.0)])
    assert corrected.value == plain.value
    assert corrected.interval.low == pytest.approx(plain.interval.low, rel=1e-6)
    assert corrected.interval.high == pytest.approx(plain.interval.high, rel=1e-6)


def test_counting_from_chance_agrees_with_fieller_on_many_items():
    pairs = table(2000, 300, 500, 1200, chance=0.25)
    expected = fieller(np.array(pairs.candidate) - 0.25, np.array(pairs.reference) - 0.25)
    found = chance_corrected_retention([pairs])
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, abs=2e-3)


def test_a_reference_that_guesses_has_no_corrected_retention():
    # 27 of 100 is within Wilson's interval of a quarter.
    found = chance_corrected_retention([table(20, 5, 7, 68, chance=0.25)])
    assert found.value is None
    assert "guessing" in found.reason


def test_without_knowing_chance_there_is_no_corrected_retention():
    found = chance_corrected_retention([table(20, 5, 7, 68)])
    assert found.value is None
    assert "not known" in found.reason


def test_a_candidate_below_chance_keeps_less_than_nothing():
    found = chance_corrected_retention([table(20, 0, 60, 20, chance=0.25)])
    assert found.value == pytest.approx(-0.05 / 0.55)
    assert found.interval.low < found.value


def binomial_tail(k, n):
    return float(sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1)))


@pytest.mark.parametrize(("won", "lost"), [(6, 16), (0, 5), (3, 3), (40, 20)])
def test_mcnemar_counts_coin_tosses(won, lost):
    pairs = table(5, won, lost, 9)
    assert mcnemar(pairs) == pytest.approx(min(1, 2 * binomial_tail(min(won, lost), won + lost)))
    assert mcnemar(pairs, harm_only=True) == pytest.approx(binomial_tail(won, won + lost))


def test_no_changed_answer_is_no_evidence():
    assert mcnemar(table(both=50, neither=10)) == 1


@pytest.mark.parametrize(
    ("shares", "n"),
    # n, both, won, lost: accuracy 0.60 to 0.85 and 2 % to 6 % of answers changed, as in statistics.md 3.4
    [((0.59, 0.004, 0.016), 164), ((0.84, 0.008, 0.012), 500), ((0.57, 0.02, 0.04), 1000)],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(shares, n):
    both, won, lost = shares
    truth = (both + won) / (both + lost)
    generator = np.random.default_rng(11)
    draws = generator.multinomial(n, [both, won, lost, 1 - both - won - lost], size=600)
    covered = sum(
        found.interval.low <= truth <= found.interval.high
        for found in (retention([table(*map(int, draw))]) for draw in draws)
    )
    # 600 draws at 95 % have a standard deviation of 0.9 points.
    assert 0.93 <= covered / 600 <= 0.985


def test_a_suite_of_unlike_tasks_is_covered_as_often_as_it_says():
    # One task collapses, one gains, one does not change at all: a common ratio is false, the ratio of sums is not.
    cells = [(100, (0.30, 0.01, 0.30)), (200, (0.50, 0.06, 0.01)), (150, (0.70, 0.0, 0.0))]
    top, bottom = sum(p[0] + p[1] for _, p in cells), sum(p[0] + p[2] for _, p in cells)
    generator = np.random.default_rng(13)
    covered = 0
    for _ in range(300):
        tasks = [table(*map(int, generator.multinomial(n, [*p, 1 - sum(p)]))) for n, p in cells]
        found = retention(tasks)
        covered += found.interval.low <= top / bottom <= found.interval.high
    assert covered / 300 >= 0.92
