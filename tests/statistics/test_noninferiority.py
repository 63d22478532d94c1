"""Loss tests against closed forms, brute force, scipy, published examples, and the failures they must not have."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from harness.statistics.contrasts import Pairs
from harness.statistics.noninferiority import loss_test, more_items, score_statistic
from harness.statistics.paired import difference, retention
from harness.statistics.power import required_items


def table(both=0, won=0, lost=0, neither=0):
    own = (1.0,) * (both + won) + (0.0,) * (lost + neither)
    other = (1.0,) * both + (0.0,) * won + (1.0,) * lost + (0.0,) * neither
    return Pairs(own, other)


def tango(counts, margin):
    """Tango 1998 in closed form, for the hypothesis that won - lost = -n margin (statistics.md 3.3).

    There b wins of one side are held against c of the other at D: q̃ is the larger root of A q² + B q + C. With b the
    candidate's losses the hypothesis of a loss of D is b - c - n D, and a loss below D makes the statistic negative.
    """
    _, c, b, _ = counts
    n = sum(counts)
    A, B, C = 2 * n, -b - c + (2 * n - b + c) * margin, -c * margin * (1 - margin)
    q = (math.sqrt(B * B - 4 * A * C) - B) / (2 * A)
    return -(b - c - n * margin) / math.sqrt(n * (2 * q + margin * (1 - margin)))


def tang(counts, theta):
    """Tang 2003 with p01 and p11 by brute-force maximization of the likelihood under p10 = θ p01 + (θ - 1) p11.

    p10 is the share that only the candidate had right, p01 only the reference, p11 both; the candidate's share of right
    answers is then θ times the reference's, s = p11 + p01. For each s the likelihood is concave in p11.
    """
    a, c, b, d = counts
    n = sum(counts)

    def log(k, p):
        return 0.0 if k == 0 else (k * math.log(p) if p > 0 else -math.inf)

    def likelihood(s, p11):
        return log(a, p11) + log(c, theta * s - p11) + log(b, s - p11) + log(d, 1 - s - theta * s + p11)

    def bounds(s):
        return max(0.0, s + theta * s - 1), min(s, theta * s)

    def inner(s):
        low, high = bounds(s)
        found = optimize.minimize_scalar(
            lambda p: -likelihood(s, p), bounds=(low, high), method="bounded", options={"xatol": 1e-14}
        )
        return max([(-found.fun, found.x), (likelihood(s, low), low), (likelihood(s, high), high)])

    top = min(1.0, 1 / theta)
    found = optimize.minimize_scalar(
        lambda s: -inner(s)[0], bounds=(0, top), method="bounded", options={"xatol": 1e-14}
    )
    s = max([(-found.fun, found.x), (inner(top)[0], top)])[1]
    p11 = inner(s)[1]
    p01 = s - p11
    return ((a + c) - theta * (a + b)) / math.sqrt(n * theta * ((1 + theta) * p01 + (theta - 1) * p11))


EDGES = [
    (10, 0, 0, 0), (60, 0, 0, 40), (0, 5, 7, 0), (0, 0, 9, 0), (0, 9, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0),
    (0, 0, 0, 1), (0, 6, 0, 4), (50, 0, 3, 20), (50, 3, 0, 20), (800, 12, 20, 487), (11731, 301, 301, -1),
]  # fmt: skip
EDGES = [counts if counts[3] >= 0 else (7000, 301, 301, 4430) for counts in EDGES]


@pytest.mark.parametrize("counts", EDGES)
@pytest.mark.parametrize("margin", [0.002, 0.01, 0.05, 0.3])
def test_a_difference_is_tested_by_tangos_closed_form(counts, margin):
    expected = tango(counts, margin)
    assert score_statistic(counts, margin=margin, scale="difference") == pytest.approx(expected, rel=1e-6, abs=1e-6)
    found = loss_test([table(*counts)], margin=margin, scale="difference")
    assert found.method == "tango-score"
    assert found.p_accept == pytest.approx(stats.norm.sf(expected), rel=1e-5, abs=1e-12)
    assert found.p_breach == pytest.approx(stats.norm.cdf(expected), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("counts", [counts for counts in EDGES if counts[0] + counts[2] > 0])
@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3])
def test_retention_is_tested_by_tangs_statistic_at_the_likeliest_shares(counts, margin):
    expected = tang(counts, 1 - margin)
    found = loss_test([table(*counts)], margin=margin, scale="retention")
    assert found.method == "tang-score"
    # A numerical maximum knows its place to about the root of the arithmetic's 1e-16 only: 1e-6 allows for that.
    assert score_statistic(counts, margin=margin, scale="retention") == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert found.p_accept == pytest.approx(stats.norm.sf(expected), rel=1e-4, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(lambda c: sum(c) > 0), st.floats(0.001, 0.6))
def test_tangos_closed_form_holds_everywhere(counts, margin):
    expected = tango(counts, margin)
    assert score_statistic(counts, margin=margin, scale="difference") == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "scale", "level", "low", "high"),
    [
        # Published 95 % and 90 % intervals of Tango 1998 and Tang 2003, as repeated in the tests of R's
        # ratesci, to three digits; Tang's by its own note "nearly".
        ((4, 9, 3, 16), "difference", 0.95, -0.027, 0.390),
        ((43, 0, 1, 0), "difference", 0.90, -0.096, 0.037),
        ((446, 5, 16, 690), "retention", 0.90, 0.958, 0.992),
        ((43, 0, 1, 0), "retention", 0.90, 0.904, 1.039),
    ],
)
def test_a_margin_at_the_lower_end_of_a_published_interval_has_half_its_error(counts, scale, level, low, high):
    tail = (1 - level) / 2
    end = -low if scale == "difference" else 1 - low
    beside = [loss_test([table(*counts)], margin=end + step, scale=scale).p_accept for step in (-6e-4, 6e-4)]
    assert beside[0] > tail > beside[1]
    found = (
        difference(table(*counts), level=level) if scale == "difference" else retention([table(*counts)], level=level)
    )
    assert found.interval.high == pytest.approx(high, abs=6e-4)


def test_ten_answers_alike_prove_nothing():
    # T = sqrt(10 * 0.01 / 0.99) = 0.318 on both scales, and P(Z > 0.318) = 0.375.
    for scale in ("retention", "difference"):
        found = loss_test([table(both=10)], margin=0.01, scale=scale)
        assert found.value == 0
        assert found.p_accept == pytest.approx(0.375, abs=1e-3)
        assert found.p_harm == 1


@pytest.mark.parametrize("scale", ["retention", "difference"])
def test_many_items_with_as_many_lost_as_won_are_accepted(scale):
    # 301 lost, 301 won of 12 032: a standard error of sqrt(602) / 12032 = 0.2 points under a margin of one.
    found = loss_test([table(7000, 301, 301, 4430)], margin=0.01, scale=scale)
    assert found.value == pytest.approx(0)
    assert found.p_accept < 0.01
    assert found.p_breach > 0.99


@pytest.mark.parametrize(("won", "lost"), [(0, 5), (6, 16), (3, 3), (40, 20), (0, 0)])
def test_harm_is_the_exact_binomial_test_of_changed_answers(won, lost):
    expected = stats.binomtest(lost, won + lost, 0.5, alternative="greater").pvalue if won + lost else 1.0
    assert loss_test([table(5, won, lost, 9)], margin=0.05, scale="difference").p_harm == pytest.approx(expected)


def test_harm_over_several_tasks_pools_their_changed_answers():
    found = loss_test([table(50, 2, 9, 9), table(70, 1, 6, 3)], margin=0.05, scale="retention")
    assert found.p_harm == pytest.approx(stats.binomtest(15, 18, 0.5, alternative="greater").pvalue)


def test_a_reference_that_scored_nothing_is_no_measure():
    found = loss_test([table(won=3, neither=9)], margin=0.01, scale="retention")
    assert (found.value, found.p_accept, found.p_breach, found.p_harm) == (None, None, None, 1.0)
    assert "nothing to keep" in found.reason
    assert loss_test([table(won=3, neither=9)], margin=0.01, scale="difference").value == pytest.approx(-0.25)


def test_a_single_item_with_partial_credit_has_no_spread():
    found = loss_test([Pairs((0.5,), (0.6,))], margin=0.01, scale="retention")
    assert found.value == pytest.approx(1 / 6)
    assert found.p_accept is found.p_breach is found.p_harm is None
    assert "single item" in found.reason


def partial(n, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    y = generator.uniform(0.2, 1, n)
    x = np.clip(y * generator.normal(0.97, 0.1, n), 0, 1)
    return Pairs(tuple(scale * x), tuple(scale * y))


@pytest.mark.parametrize("scale", ["retention", "difference"])
def test_partial_credit_beyond_one_is_tested_by_students_t(scale):
    # Scores of 0 to 10 have no known worst answer, so nothing but the spread counts: t of z, as scipy gives it.
    pairs = partial(40, 3, scale=10.0)
    x, y = np.array(pairs.candidate), np.array(pairs.reference)
    z = x - 0.95 * y if scale == "retention" else x - y + 0.05
    expected = stats.ttest_1samp(z, 0, alternative="greater").pvalue
    found = loss_test([pairs], margin=0.05, scale=scale)
    assert found.p_accept == pytest.approx(expected, rel=1e-9)
    assert found.p_breach == pytest.approx(1 - expected, rel=1e-9)
    assert found.p_harm == pytest.approx(stats.ttest_rel(x, y, alternative="less").pvalue, rel=1e-9)


def test_scores_that_nearly_all_moved_are_tested_by_students_t():
    pairs = partial(400, 5)
    z = np.array(pairs.candidate) - 0.98 * np.array(pairs.reference)
    found = loss_test([pairs], margin=0.02, scale="retention")
    assert found.p_accept == pytest.approx(stats.ttest_1samp(z, 0, alternative="greater").pvalue, rel=1e-9)


def test_a_few_moved_scores_among_many_alike_are_held_to_the_likeliest_error():
    # 3 of 200 moved by 0.1: z's own spread is a hundredth of what a margin of one point leaves room for.
    x, y = (0.4,) * 3 + (0.5,) * 197, (0.5,) * 200
    z = np.array(x) - np.array(y) + 0.01
    assert stats.ttest_1samp(z, 0, alternative="greater").pvalue < 1e-6
    assert loss_test([Pairs(x, y)], margin=0.01, scale="difference").p_accept > 0.05


@pytest.mark.parametrize("scale", ["retention", "difference"])
def test_ten_answers_alike_prove_nothing_in_parts_or_in_clusters_either(scale):
    half = Pairs((0.5,) * 10, (0.5,) * 10)
    assert loss_test([half], margin=0.01, scale=scale).p_accept > 0.3
    found = loss_test([table(both=10)], margin=0.01, scale=scale, clusters=[tuple("aabbccddee")])
    # Five clusters of two that never differ count as five items: T = sqrt(5 * 0.01 / 0.99), of 4 degrees.
    assert found.p_accept == pytest.approx(stats.t.sf(math.sqrt(5 * 0.01 / 0.99), 4), rel=1e-6)
    assert found.p_harm == 1


@pytest.mark.parametrize("scale", ["retention", "difference"])
def test_clusters_of_one_item_are_items(scale):
    pairs = partial(30, 8)
    names = tuple(map(str, range(30)))
    alone = loss_test([pairs], margin=0.05, scale=scale)
    grouped = loss_test([pairs], margin=0.05, scale=scale, clusters=[names])
    assert grouped.p_accept == pytest.approx(alone.p_accept, rel=1e-9)
    assert grouped.method != alone.method


@pytest.mark.parametrize("scale", ["retention", "difference"])
@pytest.mark.parametrize("pairs", [table(300, 6, 10, 184), partial(60, 2)])
def test_asking_every_item_twice_proves_no_more(pairs, scale):
    names = tuple(map(str, range(pairs.n)))
    once = loss_test([pairs], margin=0.02, scale=scale, clusters=[names])
    twice = Pairs(pairs.candidate * 2, pairs.reference * 2)
    again = loss_test([twice], margin=0.02, scale=scale, clusters=[names * 2])
    assert again.p_accept == pytest.approx(once.p_accept, rel=0.01)
    assert again.value == pytest.approx(once.value)


def test_one_cluster_is_one_draw():
    found = loss_test([table(40, 3, 5, 20)], margin=0.02, scale="retention", clusters=[("a",) * 68])
    assert found.p_accept is None
    assert "single cluster" in found.reason


def test_several_tasks_reject_where_their_interval_ends():
    tasks = [table(80, 2, 8, 10), table(40, 6, 9, 45)]
    interval = retention(tasks).interval
    found = loss_test(tasks, margin=1 - interval.low, scale="retention")
    assert found.method == "stratified-score"
    assert found.p_accept == pytest.approx(0.025, rel=1e-6)
    assert found.value == pytest.approx(1 - (0.82 + 0.46) / (0.88 + 0.49))


def test_a_difference_over_tasks_is_their_weighted_mean():
    # Task losses 0.06 and 0.03; weights 3 and 1 make (3 * 0.06 + 0.03) / 4.
    tasks = [table(80, 2, 8, 10), table(40, 6, 9, 45)]
    found = loss_test(tasks, margin=0.1, scale="difference", weights=[3, 1])
    assert found.value == pytest.approx(0.0525)


def test_doubling_all_weights_changes_nothing():
    tasks = [table(80, 2, 8, 10), partial(50, 4)]
    for scale in ("retention", "difference"):
        one = loss_test(tasks, margin=0.05, scale=scale, weights=[1, 2])
        assert loss_test(tasks, margin=0.05, scale=scale, weights=[2, 4]).p_accept == pytest.approx(one.p_accept)


def test_many_changed_answers_need_what_the_planner_says():
    # 200 of 1000 changed, nothing lost: ρ = 0.2, and the margin's own part of the variance is below a tenth of it.
    found = more_items([table(500, 100, 100, 300)], margin=0.01, scale="difference", alpha=0.05, power=0.8)
    assert found.towards == "accept"
    assert found.n + 1000 == pytest.approx(required_items(0.2, margin=0.01), rel=0.01)


def test_a_loss_above_the_margin_asks_for_items_to_prove_it():
    # Loss 0.04 at ρ = 0.1: z has variance 0.1 - 0.04² = 0.0984; (1.645 + 0.842)² * 0.0984 / 0.02² = 1521.
    found = more_items([table(500, 30, 70, 400)], margin=0.02, scale="difference", alpha=0.05, power=0.8)
    assert found.towards == "breach"
    assert found.n + 1000 == pytest.approx(1521, rel=0.05)


def test_no_changed_answer_still_asks_for_items():
    # Wilson's upper end for 0 of 100 is z² / (100 + z²) = 3.70 %: 6.18 * 0.037 / 0.01² = 2287 items in all.
    found = more_items([table(60, 0, 0, 40)], margin=0.01, scale="difference", alpha=0.05, power=0.8)
    assert found.towards == "accept"
    assert found.n + 100 == pytest.approx(2287, rel=0.1)


def test_a_gain_is_not_counted_on():
    gained = more_items([table(500, 130, 70, 300)], margin=0.01, scale="difference", alpha=0.05, power=0.8)
    even = more_items([table(500, 100, 100, 300)], margin=0.01, scale="difference", alpha=0.05, power=0.8)
    assert gained.towards == "accept"
    assert gained.n == pytest.approx(even.n, rel=0.05)


def test_a_loss_at_the_margin_or_of_nothing_can_never_be_settled():
    assert more_items([table(50, 0, 10, 40)], margin=0.1, scale="difference", alpha=0.05, power=0.8) is None
    assert more_items([table(won=3, neither=9)], margin=0.1, scale="retention", alpha=0.05, power=0.8) is None
    assert more_items([Pairs((0.5,), (0.6,))], margin=0.1, scale="retention", alpha=0.05, power=0.8) is None


def test_several_tasks_and_partial_credit_can_be_planned():
    tasks = [table(300, 20, 25, 155), partial(200, 6)]
    found = more_items(tasks, margin=0.01, scale="retention", alpha=0.05, power=0.8)
    loss = loss_test(tasks, margin=0.01, scale="retention").value
    assert found.towards == ("accept" if loss < 0.01 else "breach")
    assert found.n > 0


def test_items_that_were_asked_for_settle_it_as_often_as_promised():
    # Of 500 items 40 changed and 2 net were lost; the same mix at the size asked for, drawn 400 times.
    shares = (0.6, 0.038, 0.042, 0.32)
    plan = more_items([table(300, 19, 21, 160)], margin=0.02, scale="difference", alpha=0.05, power=0.8)
    draws = np.random.default_rng(4).multinomial(500 + plan.n, shares, size=400)
    passed = [score_statistic(tuple(map(int, draw)), margin=0.02, scale="difference") > 1.6449 for draw in draws]
    # 400 draws at 0.8 have a standard deviation of 0.02.
    assert np.mean(passed) == pytest.approx(0.8, abs=0.06)


def test_ten_scores_alike_prove_nothing_on_a_scale_of_a_hundred_either():
    for scale in ("retention", "difference"):
        alike = Pairs((50.0, 60.0) * 5, (50.0, 60.0) * 5)
        found = loss_test([alike], margin=0.01, scale=scale)
        assert found.p_accept is not None
        assert found.p_accept > 0.05
