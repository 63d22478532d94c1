"""Bounds against Jennison and Turnbull's table, the reflection principle and walks that were really walked."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.sequential import Stop, bounds, crossing_probability, nominal_levels, overall_p, stopped

# C. Jennison and B. W. Turnbull, Group Sequential Methods, 2000, table 2.3: C_B(K, alpha) of O'Brien and Fleming's
# two-sided tests. A walk that crosses both ends of the table is too rare for its three decimals, so half the table's
# alpha is the one-sided one.
TABLE = {
    0.10: {1: 1.645, 2: 1.678, 3: 1.710, 4: 1.733, 5: 1.751},
    0.05: {1: 1.960, 2: 1.977, 3: 2.004, 4: 2.024, 5: 2.040},
    0.01: {1: 2.576, 2: 2.580, 3: 2.595, 4: 2.609, 5: 2.621},
}


@pytest.mark.parametrize(("two_sided", "looks"), [(alpha, looks) for alpha, row in TABLE.items() for looks in row])
def test_the_last_bound_is_the_published_constant(two_sided, looks):
    assert bounds(looks, alpha=two_sided / 2)[-1] == pytest.approx(TABLE[two_sided][looks], abs=6e-4)


def test_five_looks_at_five_per_cent_use_the_constant_of_the_field():
    # Two-sided 10 % is one-sided 5 %: z_k = 1.751 sqrt(5 / k).
    expected = [1.751 * math.sqrt(5 / k) for k in range(1, 6)]
    assert bounds(5, alpha=0.05) == pytest.approx(expected, abs=2e-3)


def slow_crossing(level, at, steps, sd):
    """P(a walk at `at` reaches the level within `steps` steps), by nested adaptive quadrature."""
    now = math.erfc((level - at) / sd / math.sqrt(2)) / 2
    if steps == 1:
        return now

    def later(to):
        density = math.exp(-(((to - at) / sd) ** 2) / 2) / sd / math.sqrt(2 * math.pi)
        return density * slow_crossing(level, to, steps - 1, sd)

    return now + scipy.integrate.quad(later, -8, level, epsabs=0, epsrel=1e-8)[0]


@pytest.mark.parametrize(("looks", "alpha"), [(2, 0.05), (2, 1e-3), (2, 1e-8), (3, 0.05), (3, 1e-5)])
def test_a_walk_of_two_or_three_steps_crosses_as_often_as_adaptive_quadrature_says(looks, alpha):
    level = bounds(looks, alpha=alpha)[-1]
    assert slow_crossing(level, 0.0, looks, 1 / math.sqrt(looks)) == pytest.approx(alpha, rel=1e-6)


def test_walks_that_were_really_walked_cross_as_often_as_computed():
    generator, walks, looks = np.random.default_rng(7), 400_000, 8
    highest_W = (generator.standard_normal((walks, looks)) / math.sqrt(looks)).cumsum(axis=1).max(axis=1)
    for level in (0.0, 1.0, 2.0, 3.0):
        seen = float((highest_W >= level).mean())
        expected = crossing_probability(level, looks=looks)
        assert seen == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / walks))


@given(st.integers(1, 50), st.floats(-2, 7.5))
@settings(max_examples=60, deadline=None)
def test_a_walk_crosses_at_least_as_often_as_it_ends_above_and_at_most_twice_as_often(looks: int, level: float):
    # The reflection principle: of walks that reach a level at least half end above it.
    ends_above = scipy.stats.norm.sf(level)
    found = crossing_probability(level, looks=looks)
    assert ends_above * (1 - 1e-9) <= found <= min(1.0, 2 * ends_above) * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-7, 1e-12])
def test_more_looks_cost_more_and_never_more_than_looking_all_the_time(alpha):
    # Brownian motion crosses c with chance 2 P(Z >= c): the bound of infinitely many looks is that of alpha / 2.
    last = [bounds(looks, alpha=alpha)[-1] for looks in (1, 2, 5, 20, 50)]
    assert last == sorted(last)
    assert last[1] < last[-1]
    assert last[0] == pytest.approx(scipy.stats.norm.isf(alpha))
    assert last[-1] < scipy.stats.norm.isf(alpha / 2)


def test_levels_for_p_values_are_the_bounds_tails():
    found = nominal_levels(4, alpha=1e-3)
    assert found == pytest.approx(scipy.stats.norm.sf(bounds(4, alpha=1e-3)), rel=1e-12)
    assert found[-1] < 1e-3


def test_a_single_look_is_the_ordinary_test():
    assert nominal_levels(1, alpha=0.01) == pytest.approx((0.01,), rel=1e-12)
    assert stopped([0.0099], [0.99], alpha_accept=0.01, alpha_breach=0.01, looks=1) == Stop(1, "accept")
    assert stopped([0.0101], [0.99], alpha_accept=0.01, alpha_breach=0.01, looks=1) is None


def test_an_early_look_needs_far_more_than_a_late_one():
    # At look 1 of 5 the bound is 3.92 (p 4.5e-5), at look 3 it is 2.26 (p 0.0119), at look 4 1.96 (p 0.025).
    rates = {"alpha_accept": 0.05, "alpha_breach": 0.05, "looks": 5}
    assert stopped([0.001], [0.999], **rates) is None
    assert stopped([0.00001], [0.99999], **rates) == Stop(1, "accept")
    assert stopped([0.3, 0.1, 0.011], [0.7, 0.9, 0.989], **rates) == Stop(3, "accept")
    assert stopped([0.7, 0.9, 0.98, 0.977], [0.3, 0.1, 0.02, 0.023], **rates) == Stop(4, "breach")


def test_both_directions_have_their_own_error_rate():
    # One look, p = 0.01 in either direction: enough at 5 %, not at 0.1 %.
    assert stopped([0.01], [0.99], alpha_accept=0.05, alpha_breach=0.001, looks=1) == Stop(1, "accept")
    assert stopped([0.99], [0.01], alpha_accept=0.05, alpha_breach=0.001, looks=1) is None


def test_where_two_margins_let_both_stop_the_breach_counts():
    assert stopped([1e-9], [1e-9], alpha_accept=0.05, alpha_breach=0.05, looks=2) == Stop(1, "breach")


@given(st.integers(1, 6), st.floats(0.001, 0.2), st.data())
@settings(max_examples=60, deadline=None)
def test_the_overall_p_is_below_alpha_exactly_when_a_look_may_stop(looks: int, alpha: float, data: st.DataObject):
    p_values = data.draw(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=looks))
    overall = overall_p(p_values, looks=looks)
    if abs(overall - alpha) < 1e-6:
        return
    never = [1.0] * len(p_values)
    found = stopped(p_values, never, alpha_accept=alpha, alpha_breach=alpha, looks=looks)
    assert (overall < alpha) == (found is not None)


def test_the_overall_p_of_certainty_and_of_nothing():
    assert overall_p([0.5, 0.0], looks=5) == 0.0
    assert overall_p([1.0, 1.0], looks=5) == 1.0


def tango_p_accepts(lost, won, n, margin):
    """One-sided p of "the loss is at least the margin": T. Tango's score test (1998), for arrays of counts.

    With D = -margin the difference to be excluded from below, b = won and c = lost (statistics.md 3.3).
    """
    shift = -margin
    a, b, c = 2 * n, -won - lost + (2 * n - won + lost) * shift, -lost * shift * (1 - shift)
    q = (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return scipy.stats.norm.sf((won - lost - n * shift) / np.sqrt(n * (2 * q + shift * (1 - shift))))


def nights(discordance, loss, *, count, seed, items=12_032, looks=5, margin=0.01):
    """Shares of simulated nights that accept and that breach, and the mean share of items used."""
    generator = np.random.default_rng(seed)
    per_look = items // looks
    lost, won = (discordance + loss) / 2, (discordance - loss) / 2
    counts_NK3 = generator.multinomial(per_look, [lost, won, 1 - discordance], size=(count, looks)).cumsum(axis=1)
    n_K = per_look * np.arange(1, looks + 1)
    p_NK = tango_p_accepts(counts_NK3[..., 0], counts_NK3[..., 1], n_K, margin)
    level_K = np.array(nominal_levels(looks, alpha=0.05))
    accept_NK, breach_NK = p_NK <= level_K, 1 - p_NK <= level_K
    stops_NK = accept_NK | breach_NK
    at_N = np.where(stops_NK.any(axis=1), stops_NK.argmax(axis=1), looks - 1)
    rows = np.arange(count)
    return accept_NK[rows, at_N].mean(), breach_NK[rows, at_N].mean(), ((at_N + 1) / looks).mean()


# The measured table of group-sequential nights: 12 032 items, margin 1 point, 5 looks, both directions at 5 %.
@pytest.mark.parametrize(
    ("discordance", "loss", "direction", "power", "used"),
    [
        (0.08, 0.00, 0, 0.985, 0.58),
        (0.08, 0.02, 1, 0.987, 0.57),
        (0.08, 0.03, 1, None, 0.33),
        (0.08, 0.05, 1, None, 0.20),
        (0.04, 0.00, 0, None, 0.44),
        (0.04, 0.02, 1, None, 0.43),
    ],
)
def test_nights_stop_as_early_and_as_rightly_as_was_measured(discordance, loss, direction, power, used):
    # 20 000 nights: the share of items has a standard error below 0.002, the power one of 0.001.
    *shares, found = nights(discordance, loss, count=20_000, seed=3)
    assert found == pytest.approx(used, abs=0.01)
    if power is not None:
        assert shares[direction] == pytest.approx(power, abs=0.005)


def test_a_loss_of_exactly_the_margin_is_accepted_and_breached_as_often_as_asked_for():
    # 40 000 nights, nominal 5 %: standard error 0.0011. Measured were 5.2 % and 4.9 %.
    accept, breach, _ = nights(0.08, 0.01, count=40_000, seed=4)
    assert accept == pytest.approx(0.05, abs=0.004)
    assert breach == pytest.approx(0.05, abs=0.004)
