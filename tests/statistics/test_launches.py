"""Ratios of interleaved launches: by hand, against scipy's t tests, and by simulated sessions with known slow-downs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics.launches import (
    BASELINE,
    CANDIDATE,
    Launch,
    SpeedRatio,
    abba,
    bootstrap_interval,
    contaminated,
    effective_margin,
    log_ratio,
    noise_sd,
    slow_down,
)


def session(generator, blocks, *, loss=0.0, drift=0.0, spread=0.01):
    """Rates of launches by turns: blocks differ by 5 %, launches by `spread`, five repetitions by 1 %."""
    of_block = generator.normal(0, 0.05, blocks)
    lost = {BASELINE: 0.0, CANDIDATE: math.log1p(-loss)}
    return [
        Launch(
            side,
            at // 4,
            tuple(
                100
                * np.exp(
                    of_block[at // 4]
                    + lost[side]
                    + drift * at
                    + generator.normal(0, spread)
                    + generator.normal(0, 0.01, 5)
                )
            ),
        )
        for at, side in enumerate(abba(blocks))
    ]


def slowed(launches, at, share):
    return [
        dataclasses.replace(launch, values=tuple(v * (1 - share) for v in launch.values)) if i == at else launch
        for i, launch in enumerate(launches)
    ]


def pairs(*log_ratios):
    """One launch a side in each block, whose log ratio is the given one."""
    return [
        Launch(side, block, (math.exp(value),))
        for block, ratio in enumerate(log_ratios)
        for side, value in ((BASELINE, 1.0), (CANDIDATE, 1.0 + ratio))
    ]


def test_sides_take_turns_so_that_a_drift_adds_the_same_to_both():
    order = abba(3)
    assert "".join(side[0] for side in order) == "bccbcbbcbccb"
    for block in range(3):
        places = {side: [at for at in range(4) if order[4 * block + at] == side] for side in (BASELINE, CANDIDATE)}
        assert sum(places[BASELINE]) == sum(places[CANDIDATE])


def test_a_linear_drift_within_blocks_cancels():
    # Launch number i is exp(0.1 i) times as fast; the candidate is twice as fast in every launch.
    drifting = [
        Launch(side, at // 4, (math.exp(0.1 * at) * (2 if side == CANDIDATE else 1),))
        for at, side in enumerate(abba(4))
    ]
    assert log_ratio(drifting).value == pytest.approx(2.0, rel=1e-12)


def test_the_ratio_of_a_block_is_that_of_its_sides_medians():
    # Medians 10 and 40 against 20 and 80: geometric means 20 and 40.
    launches = [
        Launch(BASELINE, 0, (9.0, 10.0, 1000.0)),
        Launch(CANDIDATE, 0, (20.0,)),
        Launch(CANDIDATE, 0, (80.0, 1.0, 90.0)),
        Launch(BASELINE, 0, (40.0,)),
    ]
    found = log_ratio(launches)
    assert found.value == pytest.approx(2.0)
    assert (found.interval, found.n) == (None, 1)
    assert "one block" in found.reason


def test_the_interval_is_scipys_t_interval_of_the_blocks():
    ratios = [0.05, 0.01, 0.03, -0.02, 0.04, 0.02]
    found = log_ratio(pairs(*ratios), level=0.9)
    expected = scipy.stats.ttest_1samp(ratios, 0).confidence_interval(0.9)
    assert found.interval is not None
    assert (math.log(found.interval.low), math.log(found.interval.high)) == pytest.approx(tuple(expected))
    assert found.value == pytest.approx(math.exp(np.mean(ratios)))
    assert found.standard_error == pytest.approx(scipy.stats.sem(ratios))


def test_p_values_are_scipys_one_sided_t_tests_against_the_margin():
    # Rates: the lost share is 1 - ratio, so "the loss is at least 5 %" means a log ratio of at most ln 0.95.
    ratios = [-0.05, -0.01, -0.03, 0.02, -0.04, -0.02]
    found = slow_down(log_ratio(pairs(*ratios)), margin=0.05, higher_is_better=True)
    above = scipy.stats.ttest_1samp(ratios, math.log(0.95), alternative="greater").pvalue
    assert found is not None
    assert (found.p_accept, found.p_breach) == pytest.approx((above, 1 - above))


@given(
    st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=4), min_size=8, max_size=20).filter(
        lambda rows: len(rows) % 2 == 0
    ),
    st.floats(0, 0.5),
)
@settings(max_examples=50, deadline=None)
def test_seconds_per_token_and_tokens_per_second_agree(rows: list[list[float]], margin: float):
    sides = itertools.cycle((BASELINE, CANDIDATE))
    rates = [Launch(side, at // 2, tuple(row)) for at, (side, row) in enumerate(zip(sides, rows, strict=False))]
    times = [dataclasses.replace(launch, values=tuple(1 / value for value in launch.values)) for launch in rates]
    assert log_ratio(rates).value * log_ratio(times).value == pytest.approx(1.0)
    fast = slow_down(log_ratio(rates), margin=margin, higher_is_better=True)
    slow = slow_down(log_ratio(times), margin=margin, higher_is_better=False)
    assert (fast is None) == (slow is None)
    if fast is not None and slow is not None:
        assert (fast.p_accept, fast.p_breach) == pytest.approx((slow.p_accept, slow.p_breach), abs=1e-6)


def test_blocks_that_do_not_differ_have_no_interval_and_no_p():
    found = log_ratio(pairs(0.1, 0.1, 0.1))
    assert found.value == pytest.approx(math.exp(0.1))
    assert found.interval is None
    assert slow_down(found, margin=0.05, higher_is_better=True) is None


def test_a_block_without_one_side_is_refused_by_its_number():
    launches = [*pairs(0.1, 0.2), Launch(BASELINE, 7, (1.0,))]
    with pytest.raises(ValueError, match="block 7 has launches of the baseline only"):
        log_ratio(launches)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_launch_takes_only_positive_numbers(value):
    with pytest.raises(ValueError, match="above 0"):
        Launch(BASELINE, 0, (1.0, value))


def test_a_launch_needs_a_value():
    with pytest.raises(ValueError, match="has no values"):
        Launch(CANDIDATE, 3, ())


def test_simulated_sessions_cover_the_true_ratio_and_err_at_the_margin_as_often_as_asked_for():
    # 1500 drifting sessions of five blocks whose loss is exactly the margin; nominal 95 % and twice 5 %, s.e. 0.6 %.
    generator = np.random.default_rng(5)
    found = [log_ratio(session(generator, 5, loss=0.05, drift=0.02)) for _ in range(1500)]
    covered = np.mean([one.interval is not None and one.interval.low <= 0.95 <= one.interval.high for one in found])
    tests = [slow_down(one, margin=0.05, higher_is_better=True) for one in found]
    assert covered == pytest.approx(0.95, abs=0.02)
    assert np.mean([one.p_accept <= 0.05 for one in tests]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([one.p_breach <= 0.05 for one in tests]) == pytest.approx(0.05, abs=0.02)


def test_ten_blocks_show_both_no_loss_and_a_real_one():
    # A launch's median of five has sd sqrt(0.01^2 + 0.0054^2) = 0.0114, and so has a block of two launches a side. Ten
    # blocks have a standard error of 0.0036; the margin is 14 of them away.
    generator = np.random.default_rng(6)
    same = slow_down(log_ratio(session(generator, 10)), margin=0.05, higher_is_better=True)
    slower = slow_down(log_ratio(session(generator, 10, loss=0.10)), margin=0.05, higher_is_better=True)
    assert same is not None
    assert slower is not None
    assert same.p_accept < 1e-4
    assert slower.p_breach < 1e-4


def test_the_noise_of_an_artifact_against_itself_is_the_sd_of_its_blocks():
    assert noise_sd(pairs(0.01, -0.01, 0.03)) == pytest.approx(np.std([0.01, -0.01, 0.03], ddof=1))
    assert noise_sd(pairs(0.01)) is None


def test_a_margin_is_never_below_three_standard_deviations_of_the_same_artifact():
    # On the log scale three sd of 0.03 are 0.09, a lost share of 1 - exp(-0.09).
    assert effective_margin(0.05, sd=0.03, blocks=8) == pytest.approx(1 - math.exp(-0.09))
    assert effective_margin(0.05, sd=0.002, blocks=8) == 0.05
    assert effective_margin(0.05, sd=0.0, blocks=4) is None


def test_a_disturbed_launch_marks_its_block_and_side_and_nothing_is_dropped():
    # Spreads of undisturbed launches are |N(0, 2 (0.01^2 + 0.0054^2))|, s = 0.016; the outer fence is 3.65 s = 6 %.
    generator = np.random.default_rng(8)
    launches = slowed(session(generator, 10), 13, 0.2)
    found = contaminated(launches)
    assert [(one.block, one.side) for one in found] == [(3, launches[13].side)]
    assert found[0].spread > found[0].threshold
    assert log_ratio(launches).n == 10


def test_undisturbed_sessions_are_seldom_marked_and_disturbed_ones_nearly_always():
    # 500 sessions each. Half-normal spreads have quartiles 0.319 s and 1.150 s, so the outer fence is at 3.65 s, which
    # one spread in 3800 exceeds; a fence estimated from 20 spreads lets a few times as many through: below 10 %.
    generator = np.random.default_rng(9)
    quiet = [bool(contaminated(session(generator, 10), floor=0.0)) for _ in range(500)]
    caught = [bool(contaminated(slowed(session(generator, 10), int(generator.integers(40)), 0.2))) for _ in range(500)]
    assert np.mean(quiet) < 0.10
    assert np.mean(caught) > 0.95


def test_spreads_too_small_to_matter_are_not_marked():
    # 19 spreads of exactly 0 and one of 0.5 %: far out, and harmless.
    launches = [Launch(side, at // 4, (100.0,)) for at, side in enumerate(abba(10))]
    assert contaminated(slowed(launches, 4, 0.005)) == ()
    assert len(contaminated(slowed(launches, 4, 0.02))) == 1


def test_fewer_than_five_blocks_are_too_few_to_mark_one_or_to_draw_from():
    launches = slowed(session(np.random.default_rng(1), 4), 5, 0.5)
    assert contaminated(launches) == ()
    assert bootstrap_interval(launches, generator=np.random.default_rng(1)) is None


def test_running_marked_blocks_again_favours_neither_side():
    # One launch of twenty loses 20 %; marked blocks are run once more. The same artifact must still be called
    # slower in 5 % of sessions; 1000 sessions have a standard error of 0.7 %.
    generator, alarms = np.random.default_rng(10), []
    for _ in range(1000):
        launches = session(generator, 6)
        for at in np.flatnonzero(generator.random(len(launches)) < 0.05):
            launches = slowed(launches, int(at), 0.2)
        again = {one.block for one in contaminated(launches)}
        fresh = [launch for launch in session(generator, 6) if launch.block in again]
        test = slow_down(
            log_ratio([launch for launch in launches if launch.block not in again] + fresh),
            margin=0.0,
            higher_is_better=True,
        )
        alarms.append(test is not None and test.p_breach <= 0.05)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.02)


def test_the_bootstrap_agrees_with_students_t_about_many_blocks():
    # With 40 blocks t and normal quantiles are the same within 3 %. Drawing launches and repetitions again adds their
    # own spread once more: for two launches a side half of their variance, so the width is at most sqrt(1.5) of t's.
    generator = np.random.default_rng(12)
    launches = session(generator, 40, loss=0.03)
    by_t, drawn = log_ratio(launches), bootstrap_interval(launches, generator=generator)
    assert by_t.interval is not None
    assert drawn is not None
    assert drawn.low < by_t.value < drawn.high
    widths = [one.high - one.low for one in (drawn, by_t.interval)]
    assert 0.9 < widths[0] / widths[1] < 1.3


def test_the_bootstrap_of_blocks_alone_is_the_textbooks():
    # One launch of one repetition a side: only blocks are drawn, and the mean's bootstrap sd is sd(ddof 0) / sqrt(n).
    ratios = list(np.random.default_rng(2).normal(0, 0.02, 30))
    drawn = bootstrap_interval(pairs(*ratios), generator=np.random.default_rng(3), level=0.6827, draws=20_000)
    assert drawn is not None
    half = (math.log(drawn.high) - math.log(drawn.low)) / 2
    assert half == pytest.approx(np.std(ratios) / math.sqrt(30), rel=0.04)


def test_the_same_seed_draws_the_same_interval():
    launches = session(np.random.default_rng(4), 6)
    first, second = (bootstrap_interval(launches, generator=np.random.default_rng(1), draws=200) for _ in range(2))
    assert first == second


def test_a_ratio_of_one_block_has_no_standard_error():
    assert SpeedRatio(1.0, None, (0.0,)).standard_error is None
