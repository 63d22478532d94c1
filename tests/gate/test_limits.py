"""Fidelity may stop a candidate and never pass one; bytes are counted; speed needs launches by turns."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import ttest_1samp

from harness.gate.changed import changed_items
from harness.gate.judge import Evidence, judge
from harness.gate.policy import Limit, Policy, SuiteRule
from harness.gate.speed import Speeds, own_noise
from harness.gate.verdict import Finding, Mismatch, Verdict
from harness.record import Observation, Outcome
from harness.statistics.launches import Launch
from tests.gate.worlds import side, sided
from tests.reporters.world import answers, artifact, identity, metric

KLS = [0.2, 0.3, 0.4, 0.5]


def windows(kls, *, same: int = 8) -> list[Observation]:
    """Windows of ten tokens with the given mean divergences."""
    return [
        Observation(
            evaluation="fidelity",
            task="text",
            sample=f"window {index}",
            values={"tokens": 10, "bytes": 40, "nll": 30.0, "nll_ref": 29.0, "kl_mean": kl, "top1_same": same,
                    "right_to_wrong": 1, "wrong_to_right": 0},
        )
        for index, kl in enumerate(kls)
    ]  # fmt: skip


def policy(kind: str, *limits: Limit, breach: float = 0.05) -> Policy:
    return Policy(name="test", alpha={"accept": 0.05, "breach": breach}, suites=(SuiteRule(kind=kind, limits=limits),))


def judged(ours, theirs, rules: Policy, **evidence: object) -> Finding:
    (found,) = judge([ours], [theirs], rules, evidence=Evidence(**evidence)).findings
    return found


def test_a_divergence_above_its_limit_is_tested_by_window():
    limit = Limit(metric="kl_mean", at_most=0.1)
    found = judged(sided(windows(KLS)), sided(windows(KLS)), policy("fidelity", limit))
    # Windows of equal length: the mean is .35 and the test is an ordinary one-sided t test of the windows' means.
    assert found.candidate == pytest.approx(0.35)
    assert found.p_breach == pytest.approx(ttest_1samp(KLS, 0.1, alternative="greater").pvalue)
    assert found.verdict is Verdict.REGRESSED  # .0153 <= .05


def test_a_divergence_below_its_limit_is_no_pass():
    found = judged(
        sided(windows([1e-4, 2e-4, 3e-4, 4e-4])),
        sided(windows(KLS)),
        policy("fidelity", Limit(metric="kl_mean", at_most=0.1)),
    )
    assert found.verdict is Verdict.NOT_JUDGED


def test_growth_over_the_baseline_is_paired_by_window():
    limit = Limit(metric="kl_mean", margin=0.25)
    grown = [1.5 * kl + 0.001 * index for index, kl in enumerate(KLS)]
    found = judged(sided(windows(grown)), sided(windows(KLS)), policy("fidelity", limit))
    excess = [own - 1.25 * other for own, other in zip(grown, KLS, strict=True)]
    assert found.p_breach == pytest.approx(ttest_1samp(excess, 0.0, alternative="greater").pvalue)
    assert judged(sided(windows(KLS)), sided(windows(KLS)), policy("fidelity", limit)).verdict is Verdict.NOT_JUDGED


def test_agreement_is_bounded_from_below():
    rules = policy("fidelity", Limit(metric="top1_agreement", at_least=0.95))
    mixed = windows([0.1] * 4, same=7) + windows([0.1] * 4, same=8)
    mixed = [row.model_copy(update={"sample": str(index)}) for index, row in enumerate(mixed)]
    found = judged(sided(mixed), sided(mixed), rules)
    assert found.candidate == pytest.approx(0.75)
    assert found.verdict is Verdict.REGRESSED


@pytest.mark.parametrize(("bits", "verdict"), [(4.0, Verdict.NON_INFERIOR), (4.5, Verdict.REGRESSED)])
def test_bytes_are_counted_and_not_tested(bits, verdict):
    sides = [side({"t": [1.0]}, changes={"identity": identity(of)}) for of in (bits, 4.0)]
    assert judged(*sides, policy("size", Limit(metric="size_bytes", margin=0.01))).verdict is verdict


def test_unpacked_weights_have_neither_memory_nor_speed_of_their_own():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    unpacked = side({"t": [1.0]}, changes={"outcome": Outcome.EMULATED, "metrics": probe, "artifact": artifact()})
    found = judged(unpacked, unpacked, policy("speed", Limit(metric="decode_tps", margin=0.05)))
    assert found.verdict is Verdict.NOT_JUDGED
    assert "unpacked" in found.reason


def timed(ratio: float, *, blocks: int = 8, noise: float = 0.002) -> dict[tuple[str, str, str], list[Launch]]:
    """Launches in blocks of four with a small wobble that differs from launch to launch."""
    launches, draw = [], random.Random(3)
    for block in range(blocks):
        for name in ("baseline", "candidate", "candidate", "baseline"):
            wobble = math.exp(noise * draw.gauss(0, 1))
            launches.append(Launch(name, block, (100.0 * (ratio if name == "candidate" else 1.0) * wobble,)))
    return {("probes.speed", "decode", "decode_tps"): launches}


def test_speed_is_judged_by_turns_and_not_from_two_nights():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    known = side({"t": [1.0]}, changes={"metrics": probe})
    rules = policy("speed", Limit(metric="decode_tps", margin=0.05), breach=0.001)
    assert judged(known, known, rules).verdict is Verdict.INCONCLUSIVE
    for ratio, verdict in ((1.0, Verdict.NON_INFERIOR), (0.90, Verdict.REGRESSED), (1.2, Verdict.NON_INFERIOR)):
        found = judged(known, known, rules, speeds={known.key: Speeds(timed(ratio))})
        assert found.verdict is verdict, ratio
        assert found.counts is not None
        assert found.counts.n == 8
    same = judged(known, known, rules, speeds={known.key: Speeds({}, same_artifact=True)})
    assert same.verdict is Verdict.NOT_JUDGED


def test_a_margin_within_the_machines_noise_is_widened_and_the_reader_told():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    known = side({"t": [1.0]}, changes={"metrics": probe})
    rules = policy("speed", Limit(metric="decode_tps", margin=0.05))
    launches = timed(0.90, noise=0.1)
    found = judged(known, known, rules, speeds={known.key: Speeds(launches)})
    sd = own_noise(launches["probes.speed", "decode", "decode_tps"])
    assert sd is not None
    assert found.margin == pytest.approx(1 - math.exp(-3 * sd))
    assert found.margin > 0.05
    assert any("noise" in note for note in found.notes)


def test_the_items_that_tell_most_are_losses_with_a_large_change_of_margin():
    before = [
        row.model_copy(update={"values": {**row.values, "margin": 2.0}}) for row in answers("t", [1.0] * 3 + [0.0])
    ]
    moved = {0: -1.0, 1: -30.0, 2: 2.5, 3: 4.0}
    scores = [0.0, 0.0, 1.0, 1.0]
    after = [
        row.model_copy(update={"values": {**row.values, "margin": moved[index], "response": f"r{index}"}})
        for index, row in enumerate(answers("t", scores))
    ]
    found = changed_items(sided(after), sided(before))
    assert [(one.sample, one.won) for one in found] == [("0001", False), ("0000", False), ("0003", True)]
    assert found[0].candidate == "r1"


BOUNDED = (
    ("fidelity", Limit(metric="kl_mean", margin=0.25), windows(KLS), ()),
    ("memory", Limit(metric="peak_bytes", margin=0.1), (), [metric("peak_bytes", 1e9, "probes.memory", "m", unit="B")]),
    ("speed", Limit(metric="decode_tps", margin=0.1), (), [metric("decode_tps", 50.0, "probes.speed", "d", unit="x")]),
)


@pytest.mark.parametrize(("kind", "limit", "rows", "metrics"), BOUNDED)
def test_a_series_that_only_the_baseline_has_is_missing_and_no_pass(kind, limit, rows, metrics):
    scored = answers("t", [1.0] * 10)
    before = sided([*scored, *rows], changes={"metrics": metrics})
    found = judged(sided(scored), before, policy(kind, limit))
    assert found.verdict is Verdict.MISSING
    shown = limit.model_copy(update={"margin": None})
    assert not judge([sided(scored)], [before], policy(kind, shown)).findings


def test_windows_that_were_not_read_are_missing_and_hide_no_regression():
    limit, known = Limit(metric="kl_mean", margin=0.25), sided(windows(KLS))
    found = judged(sided(windows(KLS[:3])), known, policy("fidelity", limit))
    assert found.verdict is Verdict.MISSING
    assert found.reason == "1 of the baseline's 4 windows were not read"
    worse = judged(sided(windows([20 * kl for kl in KLS[:3]])), known, policy("fidelity", limit))
    assert worse.verdict is Verdict.REGRESSED


def test_a_measure_of_fidelity_that_does_not_exist_is_a_mistake():
    with pytest.raises(ValueError, match="fidelity has no kl_meen"):
        policy("fidelity", Limit(metric="kl_meen", at_most=0.1))


def test_launches_by_turns_count_wherever_the_baseline_was_pinned_and_their_failure_is_told():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    here, there = (
        side({"t": [1.0]}, changes={"metrics": probe, "machine": {"hard": {"kernel": kernel}}}) for kernel in "12"
    )
    rules = policy("speed", Limit(metric="decode_tps", margin=0.05), breach=0.001)
    (suite,) = judge([here], [there], rules).suites
    assert suite.verdict is Verdict.NOT_COMPARABLE
    found = judged(here, there, rules, speeds={here.key: Speeds(timed(1.0))})
    assert found.verdict is Verdict.NON_INFERIOR
    told = judged(here, here, rules, speeds={here.key: Speeds({}, notes=("the candidate failed in block 2",))})
    assert told.verdict is Verdict.INCONCLUSIVE
    assert told.reason == "not timed by turns: the candidate failed in block 2"


def test_a_slack_keeps_next_to_nothing_from_counting_as_growth():
    barely, more = windows([1e-7, 1.2e-7, 1.1e-7]), windows([3e-7, 3.4e-7, 3.1e-7])
    strict, lenient = (Limit(metric="kl_mean", margin=0.25, slack=slack) for slack in (0.0, 0.002))
    assert judged(sided(more), sided(barely), policy("fidelity", strict)).verdict is Verdict.REGRESSED
    assert judged(sided(more), sided(barely), policy("fidelity", lenient)).verdict is Verdict.NOT_JUDGED
    # 1.5 times the divergence, and .05 nats of it tolerated: .35 * 1.5 - .35 * 1.25 = .0875 a token is beyond.
    grown = [1.5 * kl + 0.0001 * index for index, kl in enumerate(KLS)]
    found = judged(
        sided(windows(grown)), sided(windows(KLS)), policy("fidelity", Limit(metric="kl_mean", margin=0.25, slack=0.05))
    )
    excess = [own - 1.25 * other - 0.05 for own, other in zip(grown, KLS, strict=True)]
    assert found.p_breach == pytest.approx(ttest_1samp(excess, 0.0, alternative="greater").pvalue)


def test_a_noisy_machine_makes_failing_harder_and_passing_no_easier():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    known = side({"t": [1.0]}, changes={"metrics": probe})
    rules = policy("speed", Limit(metric="decode_tps", margin=0.02))
    # 6 % slower is beyond the margin of 2 % and within three sd of noise of about 4 %: neither a pass nor a failure.
    found = judged(known, known, rules, speeds={known.key: Speeds(timed(0.94, blocks=12, noise=0.04))})
    assert found.margin is not None
    assert found.margin > 0.06
    assert found.verdict is Verdict.INCONCLUSIVE


def test_a_decision_before_all_is_measured_is_as_strict_as_the_whole():
    from tests.gate.worlds import both
    from tests.gate.worlds import policy as accuracy

    candidate, baseline = both(t=(600, 0, 12, 388))  # p = 2^-12 = .00024
    rules = accuracy(scale="difference", margin=0.0001)
    assert judge([candidate], [baseline], rules).suites[0].verdict is Verdict.REGRESSED
    early = judge([candidate], [baseline], rules, evidence=Evidence(tests=50))
    assert early.suites[0].verdict is not Verdict.REGRESSED


def test_a_bound_from_below_is_broken_from_below_whatever_the_metric():
    rules = policy("fidelity", Limit(metric="kl_mean", at_least=0.1))
    found = judged(sided(windows(KLS)), sided(windows(KLS)), rules)
    # .35 on average is above .1, so nothing speaks for a breach: p is that of the other tail.
    assert found.p_breach == pytest.approx(ttest_1samp(KLS, 0.1, alternative="less").pvalue)
    assert found.verdict is Verdict.NOT_JUDGED


def test_what_forbids_launches_by_turns_makes_times_not_comparable():
    probe = [metric("decode_tps", 50.0, "probes.speed", "decode", unit="tokens/s")]
    known = side({"t": [1.0]}, changes={"metrics": probe})
    other = Mismatch(
        label=known.label, suite="quickstart", field="artifact", baseline="old", candidate="new", hard=True
    )
    rules = policy("speed", Limit(metric="decode_tps", margin=0.05))
    found = judge([known], [known], rules, evidence=Evidence(speeds={known.key: Speeds({}, mismatches=(other,))}))
    (suite,) = found.suites
    assert suite.verdict is Verdict.NOT_COMPARABLE
    assert "artifact" in suite.reason
    assert found.mismatches == (other,)
