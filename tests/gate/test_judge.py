"""The verdicts that matter, from counted outcomes: what passes, what fails, what is open and what cannot be said."""

from __future__ import annotations

import pytest

from harness.gate.judge import judge
from harness.gate.measured import measured
from harness.gate.policy import Alpha, TaskRule
from harness.gate.verdict import Finding, Verdict
from harness.record import Failure, Outcome
from harness.spec import Suite, Use
from harness.statistics.items import in_random_order
from tests.gate.worlds import both, policy, scores, side, sided, suite_in_part
from tests.reporters.world import FakeResults, answers


def verdict(*tasks: tuple[int, int, int, int], **rules: object) -> Verdict:
    candidate, baseline = both(**{f"t{index}": counts for index, counts in enumerate(tasks)})
    (suite,) = judge([candidate], [baseline], policy(**rules)).suites
    return suite.verdict


def findings(*tasks: tuple[int, int, int, int], **rules: object) -> dict[str, Finding]:
    candidate, baseline = both(**{f"t{index}": counts for index, counts in enumerate(tasks)})
    return {found.place.task: found for found in judge([candidate], [baseline], policy(**rules)).findings}


def test_ten_concordant_pairs_prove_nothing():
    assert verdict((10, 0, 0, 0)) is Verdict.INCONCLUSIVE


def test_twelve_thousand_items_with_as_many_won_as_lost_are_non_inferior_at_one_point():
    # 301 + 301 of 12,032 changed: rho = .05, and the planner asks for 3,092 items at 80 % power.
    assert verdict((7000, 301, 301, 4430), scale="difference", margin=0.01) is Verdict.NON_INFERIOR


def test_a_loss_of_twenty_points_is_a_regression_and_one_of_two_is_open():
    assert verdict((500, 20, 220, 260)) is Verdict.REGRESSED
    # 10 won and 30 lost of 1,000: lost 2 points of 63, of which 1 % = .63 are tolerated; z = 1.37 / .63 of an error.
    found = findings((600, 10, 30, 360))["t0"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.harm  # P(at most 10 of 40) = .0011
    assert found.towards == "breach"


def test_a_regression_needs_the_exact_test_too():
    # All 12 changes are losses: McNemar's exact p is 2^-12 = .00024, which .001 allows and .0001 does not, whatever
    # the score test says.
    lost = (600, 0, 12, 388)
    rules = {"scale": "difference", "margin": 0.0001}
    assert verdict(lost, alpha=Alpha(breach=0.001), **rules) is Verdict.REGRESSED
    assert verdict(lost, alpha=Alpha(breach=0.0001), **rules) is not Verdict.REGRESSED


def test_breaches_are_held_against_all_tests_of_the_night():
    # p = .00024 for one of 2 tests (the task and all tasks together): Holm asks for .001 / 2. With 50 more tasks it
    # asks for .001 / 52, which the same task no longer reaches.
    lost, same = (600, 0, 12, 388), (600, 0, 0, 400)
    rules = {"scale": "difference", "margin": 0.0001}
    assert findings(lost, **rules)["t0"].verdict is Verdict.REGRESSED
    assert findings(lost, *[same] * 50, **rules)["t0"].verdict is not Verdict.REGRESSED


def test_a_pooled_suite_passes_with_tasks_that_are_open_by_themselves():
    tasks = [(140, 0, 0, 60)] * 6
    assert verdict(*tasks, margin=0.01) is Verdict.NON_INFERIOR
    assert verdict(*tasks, margin=0.01, rule="every_critical") is Verdict.INCONCLUSIVE


def test_a_critical_task_that_regressed_fails_a_suite_that_is_fine_on_the_whole():
    fine, lost = (9000, 50, 50, 900), (150, 0, 40, 10)
    assert verdict(fine, lost, margin=0.3) is Verdict.NON_INFERIOR
    assert (
        findings(fine, lost, margin=0.3, tasks=(TaskRule(task="t1", margin=0.01),))["t1"].verdict is Verdict.REGRESSED
    )
    rules = {"margin": 0.3, "tasks": (TaskRule(task="t1", margin=0.01),)}
    assert verdict(fine, lost, **rules) is Verdict.REGRESSED
    spared = {"margin": 0.3, "tasks": (TaskRule(task="t1", margin=0.01, critical=False),)}
    assert verdict(fine, lost, **spared) is Verdict.NON_INFERIOR


def judged(candidate, baseline, **rules):
    return judge([candidate] if candidate else [], [baseline] if baseline else [], policy(**rules))


def test_items_that_were_dropped_are_missing_and_never_forgotten():
    own, other = scores((900, 5, 5, 90))
    (suite,) = judged(side({"t": own[:-3]}), side({"t": other})).suites
    assert suite.verdict is Verdict.MISSING
    assert "3 of the baseline's 1,000 items" in suite.reason
    (suite,) = judged(side({"t": own[:-3]}), side({"t": other}), max_unanswered=0.01, margin=0.05).suites
    assert suite.verdict is Verdict.NON_INFERIOR


def test_a_task_that_was_not_answered_at_all_is_missing():
    own, other = scores((900, 5, 5, 90))
    (suite,) = judged(side({"t": own}), side({"t": other, "gone": other})).suites
    assert suite.verdict is Verdict.MISSING


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY])
def test_a_cell_without_numbers_is_missing_with_its_reason(outcome):
    broken = side({}, changes={"outcome": outcome, "error": Failure(phase="observe", reason="it fell over")})
    (suite,) = judged(broken, side({"t": [1.0] * 10})).suites
    assert suite.verdict is Verdict.MISSING
    assert "it fell over" in suite.reason


def test_a_cell_that_was_not_run_is_missing_and_a_new_one_is_not_judged():
    known = side({"t": [1.0] * 10})
    (gone,), (new,) = judged(None, known).suites, judged(known, None).suites
    assert (gone.verdict, new.verdict) == (Verdict.MISSING, Verdict.NOT_JUDGED)


def test_what_can_run_nowhere_is_no_news():
    refused = side({}, changes={"outcome": Outcome.UNSUPPORTED, "error": Failure(phase="plan", reason="no GPU")})
    (suite,) = judged(refused, refused).suites
    assert suite.verdict is Verdict.NOT_JUDGED


def test_sides_that_were_asked_other_things_are_not_compared():
    rows = answers("t", [1.0] * 50, prompt_hash="new")
    others = answers("t", [1.0] * 50, prompt_hash="old")
    found = judged(sided(rows), sided(others))
    assert found.suites[0].verdict is Verdict.NOT_COMPARABLE
    assert "prompt_hash" in found.suites[0].reason
    assert not found.findings


def looks(counts, *, looks: int = 5, **rules) -> Finding:
    return findings(counts, looks=looks, **rules)["t0"]


def test_a_clear_case_is_decided_at_an_early_look_and_says_so():
    found = looks((9000, 20, 20, 2960), margin=0.02)
    assert found.verdict is Verdict.NON_INFERIOR
    assert found.looks == 5
    assert found.look < 5
    assert looks((9000, 20, 20, 2960), margin=0.02, looks=1).look == 1


def parts(own, other, *, of: int, kept: int):
    """Both sides in `of` parts of which the candidate ran the first `kept`."""
    size = len(own) // of
    sides = []
    for values, last in ((own, kept), (other, of)):
        results = FakeResults()
        for index in range(1, last + 1):
            every = answers("t", values)[(index - 1) * size : index * size]
            made = sided(every, suite=suite_in_part(index, of))
            results.add(made.records[0], every)
        (found,) = measured(results)
        sides.append(found)
    return sides


def test_a_suite_that_stopped_early_is_judged_on_the_parts_that_ran():
    own, other = scores((9000, 20, 20, 2960))
    candidate, baseline = parts(own, other, of=4, kept=2)
    assert candidate.part_count == 4
    judgement = judged(candidate, baseline, margin=0.02)
    (suite,) = judgement.suites
    assert suite.verdict is Verdict.NON_INFERIOR
    assert suite.finding is not None
    assert suite.finding.looks == 4
    assert suite.finding.look <= 2


def test_parts_against_a_whole_are_missing_items_and_no_pass():
    own, other = scores((900, 0, 0, 100))
    candidate, _ = parts(own, other, of=4, kept=2)
    (suite,) = judged(candidate, side({"t": other})).suites
    assert suite.verdict is Verdict.MISSING


def test_against_references_compressed_cells_meet_the_reference_of_their_family():
    own, other = scores((9000, 20, 20, 2960))
    reference, compressed = side({"t": other}, pipeline="reference"), side({"t": own})
    found = judge([compressed, reference], [reference], policy(against="reference", margin=0.02))
    (suite,) = found.suites
    assert suite.verdict is Verdict.NON_INFERIOR
    assert suite.place.candidate == compressed.cell.id
    assert any("very same weights" in told for told in found.warnings)  # both identities have the same digest


def test_a_suite_without_a_rule_is_left_alone():
    other = Suite(name="elsewhere", version="1", evaluations=(Use(use="tasks.lm_eval"),))
    known = side({"t": [1.0] * 10}, suite=other)
    assert judge([known], [known], policy(suite="quickstart")).suites == ()


def test_a_first_look_at_which_the_baseline_scored_nothing_hides_no_later_loss():
    names = [f"{index:04}" for index in range(400)]
    early = set(in_random_order(names)[:80])  # the first look of five
    baseline = side({"t": [float(name not in early) for name in names]})
    (suite,) = judged(side({"t": [0.0] * 400}), baseline, looks=5).suites
    assert suite.verdict is Verdict.REGRESSED  # all of the 320 that were right are lost


@pytest.mark.parametrize("rule", ["pooled", "every_critical"])
def test_a_dropped_item_hides_no_proven_regression(rule):
    own, other = scores((500, 10, 390, 100))
    found = judged(side({"t": own[:-1]}), side({"t": other}), rule=rule)
    assert found.suites[0].verdict is Verdict.REGRESSED
    assert "1 of the baseline's 1,000 items" in found.suites[0].reason
    assert all(one.p_adjusted is not None for one in found.findings)


def test_a_gain_of_all_tasks_together_is_no_harm_though_more_items_were_lost_than_won():
    # 15 won and 30 lost of 1,020 items; by task -2.5 and +50 points.
    found = findings((900, 5, 30, 65), (5, 10, 0, 5))
    assert found["t0"].harm
    pooled = found["all tasks together"]
    assert pooled.p_harm is not None
    assert pooled.p_harm <= 0.05
    assert not pooled.harm


def test_a_baseline_that_stopped_early_is_compared_on_the_parts_it_has():
    own, other = scores((9000, 20, 20, 2960))
    baseline, candidate = parts(other, own, of=4, kept=2)
    (suite,) = judged(candidate, baseline, margin=0.02).suites
    assert suite.verdict is Verdict.NON_INFERIOR
    assert suite.finding is not None
    assert suite.finding.counts is not None
    assert suite.finding.counts.n <= 6000


def test_of_a_suite_that_was_cut_otherwise_the_newest_records_count():
    results = FakeResults()
    for index, (started, suite) in enumerate([("2026-01-01", suite_in_part(1, 4)), ("2026-01-02", None)]):
        rows = answers("t", [float(index)] * 10)
        made = sided(rows, changes={"started_at": started}, **({"suite": suite} if suite else {}))
        results.add(made.records[0], rows)
    (found,) = measured(results)
    assert found.part_count == 1
    assert {item.score for item in found.items["tasks.lm_eval", "t"].values()} == {1.0}
