"""The gate's test of itself: promises kept, planted series seen, goals that can be missed."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from harness.gate.judge import judge
from harness.gate.planted import lying_series, selftest_from_records
from harness.gate.policy import Alpha
from harness.gate.preflight import preflight
from harness.gate.scenarios import PUBLISHED, Scenario, Setup, planned, scenarios
from harness.gate.selftest import SelfTest, Simulated, selftest, simulate, upper_bound
from harness.gate.selftest_markdown import selftest_markdown
from harness.gate.simulation import Change, Night, Stored
from harness.gate.verdict import Verdict
from harness.gate_cli import gate
from harness.gating import load_policy
from tests.gate.worlds import policy, side, sided
from tests.reporters.world import FakeResults, answers, cell, identity, record

SMALL = Setup(nights=200, cells=3)


@pytest.fixture(scope="module")
def found():
    return selftest(load_policy("nightly"), SMALL)


def test_nights_without_loss_do_not_fail_the_build(found):
    lossless = [one for one in found.simulated if one.group == "nothing lost"]
    assert len(lossless) == 7
    # At one in a thousand 200 nights have 3 false alarms or more in one case of 750: 200³ / 6 / 1000³ = 0.0013.
    assert all(one.regressed <= 2 for one in lossless)
    assert sum(one.regressed for one in lossless) <= 6
    assert all(one.met is not False for one in lossless)


def test_the_planner_names_enough_items(found):
    asked = [one for one in found.simulated if one.group == "planned"]
    assert len(asked) == 2
    # 80 % of 200 nights, less three standard errors of 2.8 points.
    assert all(one.regressed / one.nights >= 0.8 - 0.085 for one in asked)


def test_larger_losses_are_found_more_often_and_the_largest_always(found):
    by_name = {one.name: one.regressed / one.nights for one in found.simulated if one.group == "lost"}
    names = ("1 point", "2 points", "3 points", "5 points", "10 points")
    points = [by_name[f"{name} lost by one cell, 1,000 items a task"] for name in names]
    assert points == sorted(points)
    assert points[-1] == 1.0


def test_slow_downs_within_the_margin_fail_nothing(found):
    quiet = [one for one in found.simulated if one.group == "slower" and ("no cell" in one.name or "2%" in one.name)]
    assert len(quiet) == 4
    assert all(one.regressed <= 1 for one in quiet)


def test_every_night_has_one_exit_code(found):
    for one in found.simulated:
        assert one.regressed + one.not_comparable + one.inconclusive + one.go == one.nights


def test_the_same_seed_gives_the_same_report():
    setup = Setup(nights=20, cells=1, tasks=(Stored("t", 50, 30),))
    one, other = (selftest(load_policy("release"), setup) for _ in range(2))
    assert selftest_markdown(one) == selftest_markdown(other)


@pytest.mark.parametrize("name", ["nightly", "release", "compare"])
def test_series_that_lie_are_seen_under_every_policy(name):
    assert [one.name for one in lying_series(load_policy(name), PUBLISHED) if not one.met] == []


def test_a_gate_that_cries_wolf_misses_its_goal():
    # With alpha at 0.4 and no margin to speak of nights fail by chance, which is far more than one in ten thousand.
    loose = policy(scale="difference", margin=0.0001, alpha=Alpha(breach=0.4))
    scenario = Scenario("nothing lost", "wolf", Night(PUBLISHED, 4, Change(0.1)), at_most=0.0001)
    told = simulate(scenario, loose, nights=60, generator=np.random.default_rng(0))
    assert told.met is False
    assert "**missed**" in selftest_markdown(nothing_but(told))
    assert nothing_but(told).missed == ("wolf",)


def nothing_but(told: Simulated) -> SelfTest:
    return SelfTest(policy="p", policy_id="", seed=0, assumptions=(), simulated=(told,), series=())


def test_no_alarm_in_three_thousand_nights_bounds_them_by_one_in_a_thousand():
    # (1 - p)^n = 0.05 for n = 2,995 at p = 0.001, the rule of three; and all of n: nothing is ruled out.
    assert upper_bound(0, 2995) == pytest.approx(1 - 0.05 ** (1 / 2995), rel=1e-9)
    assert upper_bound(0, 2995) == pytest.approx(0.001, rel=1e-3)
    assert upper_bound(5, 5) == 1.0


def test_the_plan_knows_how_many_numbers_a_night_has():
    # 3 points of 100 lost, 67 of 100 right and 1 % of that tolerated: 2.33 in excess; 5 % flip and 3 % are lost.
    # z(0.001 / 56) = 4.1347 and z(0.8) = 0.8416: (4.9763)² * 0.08 / 0.0233² = 3,649 but for rounding of z.
    n = planned(policy(), [Stored("t", 100, 67)], Change(0.05, lost=0.03), tests=56)
    assert n == pytest.approx(3649, abs=5)


def test_policies_without_speed_have_no_such_nights():
    assert {one.group for one in scenarios(load_policy("release"), Setup())} == {
        "nothing lost", "margin lost", "lost", "planned"
    }  # fmt: skip


def margins(shift: float, *, weights: str) -> object:
    rows = [
        row.model_copy(update={"values": {**row.values, "margin": at / 7 + shift}})
        for at, row in enumerate(answers("t", [1.0] * 30 + [0.0] * 10))
    ]
    return sided(rows, changes={"identity": identity(4).model_copy(update={"weights_digest": weights})})


def test_answers_that_are_the_same_to_the_last_digit_from_other_weights_are_told():
    same = judge([margins(0, weights="new")], [margins(0, weights="old")], policy())
    assert any("a cache may have served them" in told for told in same.warnings)
    for candidate in (margins(1e-9, weights="new"), margins(0, weights="old")):
        assert not any("cache" in told for told in judge([candidate], [margins(0, weights="old")], policy()).warnings)


def test_scores_alone_may_be_alike():
    plain = side({"t": [1.0] * 9}, changes={"identity": identity(4).model_copy(update={"weights_digest": "new"})})
    assert not [one for one in preflight(plain, side({"t": [1.0] * 9}), policy()) if one.field == "answers"]


def test_damaged_models_are_judged_against_their_reference():
    results = FakeResults()
    for name, values in {
        "reference": [1.0] * 700 + [0.0] * 300,
        "damaged": [1.0] * 500 + [0.0] * 500,
        "packed": [1.0] * 700 + [0.0] * 300,
    }.items():
        rows = answers("t", values)
        results.add(record(cell(name), rows), rows)
    told = {one.name.split(":")[0]: one for one in selftest_from_records(results, load_policy("release"))}
    assert told.keys() == {"damaged", "packed"}
    assert told["damaged"].verdict is Verdict.REGRESSED
    assert told["damaged"].exit_code == 1
    assert told["packed"].verdict is Verdict.NON_INFERIOR
    assert "quantize.damaged" in told["damaged"].name


def test_the_verb_writes_what_it_found(tmp_path):
    ran = CliRunner().invoke(
        gate, ["selftest", "--policy", "release", "--nights", "20", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert ran.exit_code == 0
    text = (tmp_path / "selftest.md").read_text()
    assert "Series that lie" in text
    assert "too few nights to say" in text
    assert (tmp_path / "selftest.json").is_file()
