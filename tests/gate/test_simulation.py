"""Simulated nights are judged as real ones: the same counts give the same verdicts, and draws are what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.gate.judge import judge
from harness.gate.policy import Alpha, Limit, Policy, SuiteRule, TaskRule
from harness.gate.simulated_measures import Machine, Race, Texts, fidelity_bench, speed_bench
from harness.gate.simulation import Change, Memory, Night, Stored, draw, exit_codes, exit_of, stored_tasks
from harness.gate.verdict import exit_code
from harness.statistics.contrasts import Pairs
from harness.statistics.noninferiority import counted_loss_test, loss_test
from tests.gate.worlds import both, policy, scores, side

COUNTS = [(40, 3, 9, 48), (300, 0, 0, 100), (0, 4, 0, 96), (55, 0, 21, 24), (10, 0, 0, 0)]


def pairs(counts) -> Pairs:
    own, other = scores(counts)
    return Pairs(tuple(own), tuple(other))


@pytest.mark.parametrize("scale", ["retention", "difference"])
@pytest.mark.parametrize("tasks", [*([one] for one in COUNTS), COUNTS[:2], COUNTS])
def test_counts_say_what_their_items_say(tasks, scale):
    by_items = loss_test([pairs(one) for one in tasks], margin=0.02, scale=scale)
    by_counts = counted_loss_test(tasks, margin=0.02, scale=scale)
    assert (by_counts.n, by_counts.method, by_counts.reason) == (by_items.n, by_items.method, by_items.reason)
    for name in ("value", "p_accept", "p_breach", "p_harm"):
        told, expected = getattr(by_counts, name), getattr(by_items, name)
        assert told == (expected if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-15))


TASKS = (Stored("t0", 300, 200), Stored("t1", 150, 60))


@pytest.mark.parametrize("lost", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("rule", ["pooled", "every_critical"])
def test_a_simulated_night_has_the_exit_code_of_a_real_one(lost, rule):
    tested = policy(margin=0.02, rule=rule, alpha=Alpha(breach=0.01), tasks=(TaskRule(task="t1", critical=False),))
    change = Change(0.04, lost=lost)
    generator = np.random.default_rng(3)
    drawn = [draw(task, change, looks=1, nights=12, generator=generator) for task in TASKS]
    seen = set()
    for night in zip(*drawn, strict=True):
        candidate, baseline = both(**{task.name: looks[0] for task, looks in zip(TASKS, night, strict=True)})
        real = exit_code([one.verdict for one in judge([candidate], [baseline], tested).suites], strict=True)
        memory = Memory(tested, tested.suites[0], TASKS)
        assert exit_of([memory.bench(night)], tested) == real
        seen.add(real)
    assert seen


@pytest.mark.parametrize(
    "change", [Change(0.1), Change(0.1, lost=0.05), Change(0.05, pinned=0.1), Change(0.02, lost_of_right=0.1)]
)
def test_draws_come_as_often_as_they_should(change):
    task, nights = Stored("t", 400, 280), 4000
    drawn = np.array(draw(task, change, looks=4, nights=nights, generator=np.random.default_rng(1)))
    assert drawn.shape == (nights, 4, 4)
    assert (drawn.sum(axis=2) == [100, 200, 300, 400]).all()
    assert (np.diff(drawn, axis=1) >= 0).all()
    mean, error = drawn[:, -1].mean(axis=0) / task.n, drawn[:, -1].std(axis=0) / task.n / math.sqrt(nights)
    assert (abs(mean - change.shares(task)) <= 4.5 * error + 1e-12).all()


def test_shares_are_those_of_the_words():
    # 70 of 100 right, 10 % flip (5 won, 5 lost) and 3 more are lost: 62 stay right, 5 are won, 8 are lost, 25 neither.
    assert Change(0.1, lost=0.03).shares(Stored("t", 100, 70)) == pytest.approx((0.62, 0.05, 0.08, 0.25))
    # Lost as a share of the right ones: a tenth of 70.
    assert Change(lost_of_right=0.1).shares(Stored("t", 100, 70)) == pytest.approx((0.63, 0, 0.07, 0.3))
    # Both sides flip alike: as many won as lost again, twice as many of them but for those that flip in both.
    _, won, lost, _ = Change(0.1, pinned=0.1).shares(Stored("t", 100, 50))
    assert won == pytest.approx(lost)
    assert won == pytest.approx(0.1 - 0.1 * 0.1)


def test_false_alarms_come_no_more_often_than_promised_even_without_a_margin_to_help():
    # Ten thousandths of margin and a tenth of the items flipping: only McNemar's exact test and Holm hold it down. The
    # share must not be proven above 5 %, and must not be zero either, or nothing would have been tested.
    loose = policy(scale="difference", margin=0.0001, alpha=Alpha(breach=0.05))
    night = Night(tuple(task.resized(500) for task in TASKS), cells=3, change=Change(0.1))
    alarms = exit_codes(night, loose, nights=1500, generator=np.random.default_rng(7))[1]
    assert stats.binomtest(alarms, 1500, 0.05, alternative="greater").pvalue > 0.01
    assert alarms > 10


def test_stored_tasks_leave_out_what_cannot_be_drawn():
    found, others = stored_tasks(side({"plain": [1.0, 1.0, 0.0], "graded": [0.5, 1.0], "hopeless": [0.0, 0.0]}))
    assert found == [Stored("plain", 3, 2)]
    assert [other.split(":")[0] for other in others] == ["graded", "hopeless"]


SPEED = SuiteRule(kind="speed", limits=(Limit(metric="decode_tps", margin=0.2),))


def test_slow_downs_are_found_as_often_as_the_noncentral_t_says():
    # Without drift a block's log ratio has the sd of a launch, (s²/2 + s²/2)^(1/2). A quarter slower against a fifth:
    # ln(0.8 / 0.75) = 0.0645 above the margin, in standard errors of 0.02 / 5^(1/2); t of 4 degrees at 0.001.
    race = Race(1, Machine(launch_sd=0.02, drift=0.0), slower=0.25)
    only = Policy(name="p", suites=(SPEED,), alpha=Alpha(breach=0.001))
    caught = race.exit_codes(SPEED, only, nights=600, generator=np.random.default_rng(2))[1] / 600
    expected = stats.nct.sf(stats.t.isf(0.001, 4), 4, math.log(0.8 / 0.75) / (0.02 / math.sqrt(5)))
    assert 0.3 < expected < 0.9
    assert caught == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


def test_times_and_rates_of_one_machine_say_the_same():
    def p(metric: str) -> float:
        rule = SPEED.model_copy(update={"limits": (Limit(metric=metric, margin=0.05),)})
        (trial,) = speed_bench(rule, Machine(), slower=0.1, generator=np.random.default_rng(4)).trials
        assert trial.p_breach is not None
        return trial.p_breach

    assert p("tpot_s") == pytest.approx(p("decode_tps"), rel=1e-6)


def test_fidelity_of_a_lossless_night_breaches_no_bound():
    rule = SuiteRule(kind="fidelity", limits=(Limit(metric="kl_mean", margin=0.25),))
    (trial,) = fidelity_bench(rule, Texts(), generator=np.random.default_rng(0)).trials
    assert trial.finding.counts is not None
    assert trial.finding.counts.n == 8
    assert trial.p_breach is not None
    assert trial.p_breach > 0.9
