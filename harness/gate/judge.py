"""From two sets of records and a policy to a decision: the one function a gate is.

Everything is pure: the same records and the same policy give the same decision, on any machine, years later. Breaches
are corrected for how many numbers were tested at once (Holm), so that a night with a thousand numbers fails by chance
as rarely as a night with one. Acceptances are not: a suite that needs every critical task to be non-inferior errs only
if all of them do (an intersection-union test).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.gate.accuracy import Accuracy, Asked
from harness.gate.limits import fidelity_trials, size_trials
from harness.gate.matching import Match, match
from harness.gate.measured import Key, Measured
from harness.gate.noise import NoiseFloor
from harness.gate.policy import Policy, SuiteRule
from harness.gate.preflight import SERVED_AGAIN, machine_mismatches, preflight
from harness.gate.speed import Speeds, speed_trials
from harness.gate.trial import Trial, corrected
from harness.gate.verdict import POOLED, Finding, Kind, Mismatch, Place, SuiteVerdict, Verdict, worst
from harness.statistics.items import pair

KINDS: tuple[Kind, ...] = ("fidelity", "accuracy", "speed", "memory", "size")
FAILING = (Verdict.REGRESSED, Verdict.MISSING)
"""What a critical task may not be, even where all tasks together are fine."""


@dataclass(frozen=True)
class Evidence:
    """What a decision may use beside records: the noise of the reference itself, and interleaved launches by cell.

    A decision before all is measured is corrected for at least `tests` numbers, so that it holds when all are there.
    """

    noise: NoiseFloor | None = None
    speeds: Mapping[Key, Speeds] = field(default_factory=dict)
    tests: int = 0


@dataclass(frozen=True)
class Judgement:
    """The verdicts of all suites of all cells, what they rest on, and what a reader should know."""

    suites: tuple[SuiteVerdict, ...]
    findings: tuple[Finding, ...]
    mismatches: tuple[Mismatch, ...]
    warnings: tuple[str, ...]


@dataclass
class _Bench:
    """One cell's numbers of one kind before their verdicts."""

    match: Match
    rule: SuiteRule
    trials: list[Trial] = field(default_factory=list)
    pooled: Trial | None = None
    settled: SuiteVerdict | None = None


def judge(
    candidates: Iterable[Measured], baselines: Iterable[Measured], policy: Policy, *, evidence: Evidence | None = None
) -> Judgement:
    """Judges every cell that the policy has a rule for, matched as the policy says."""
    return judge_matches(match(list(candidates), list(baselines), policy), policy, evidence=evidence)


def planned_tests(baselines: Sequence[Measured], policy: Policy) -> int:
    """Gives how many numbers a whole run like the baseline's has to be corrected for."""
    whole = judge(baselines, baselines, policy)
    return sum(finding.p_breach is not None for finding in whole.findings)


def judge_matches(matches: Iterable[Match], policy: Policy, *, evidence: Evidence | None = None) -> Judgement:
    """Judges pairs of cells; breaches are corrected over all of them together."""
    known = evidence or Evidence()
    court = _Court(policy, known)
    benches = [bench for matched in matches for bench in court.benches(matched)]
    trials = [trial for bench in benches for trial in (*bench.trials, *([bench.pooled] if bench.pooled else []))]
    tests = max(known.tests, sum(trial.p_breach is not None for trial in trials))
    decided = {
        id(trial): trial.decided(adjusted=adjusted, tests=tests, alpha=policy.alpha)
        for trial, adjusted in zip(trials, corrected(trials, tests=tests), strict=True)
    }
    suites = tuple(bench.settled or _suite(bench, decided) for bench in benches)
    findings = tuple(decided.values())
    return Judgement(suites, findings, tuple(court.mismatches), tuple(_warnings(suites, court.mismatches)))


@dataclass
class _Court:
    """Takes matched cells apart into benches, and collects in what their sides differ."""

    policy: Policy
    evidence: Evidence
    mismatches: list[Mismatch] = field(default_factory=list)

    def benches(self, matched: Match) -> list[_Bench]:
        """Gives a bench for each kind of number that the policy judges in the matched cell's suite."""
        name = matched.side.cell.suite.name
        rules = [rule for kind in KINDS if (rule := self.policy.rule(name, kind))]
        ours, theirs = matched.candidate, matched.baseline
        if ours is None or theirs is None or ours.failure or theirs.failure:
            return [_without_numbers(matched, rule) for rule in rules[:1]]
        about_answers = preflight(ours, theirs, self.policy)
        self.mismatches += about_answers
        benches = []
        for rule in rules:
            found = about_answers if rule.kind in ("fidelity", "accuracy") else ()
            if rule.kind == "speed":
                found = self._about_times(ours, theirs)
                self.mismatches += [one for one in found if one not in self.mismatches]
            if forbids := sorted({one.field for one in found if one.hard}):
                reason = f"the two sides differ in {', '.join(forbids)}"
                settled = _settled(matched, rule, Verdict.NOT_COMPARABLE, reason)
                benches.append(_Bench(matched, rule, settled=settled))
            else:
                benches.append(self._bench(matched, rule, ours=ours, theirs=theirs))
        return [bench for bench in benches if bench.trials or bench.settled]

    def _about_times(self, ours: Measured, theirs: Measured) -> tuple[Mismatch, ...]:
        """Gives what forbids comparing times: of launches by turns what ended them, else where the machines differ."""
        speeds = self.evidence.speeds.get(ours.key)
        # Launches by turns are of one machine and one night, wherever the baseline was pinned.
        if speeds and (speeds.launches or speeds.mismatches):
            return speeds.mismatches
        return machine_mismatches(ours, theirs, self.policy)

    def _bench(self, matched: Match, rule: SuiteRule, *, ours: Measured, theirs: Measured) -> _Bench:
        noise, bench = self.evidence.noise, _Bench(matched, rule)
        if rule.kind == "accuracy":
            accuracy = Accuracy(self.policy, rule, ours, theirs)
            bench.trials, bench.pooled = accuracy.trials(_asked(ours, theirs, rule))
            bench.trials = [_with_noise(trial, ours, noise) for trial in bench.trials]
        elif rule.kind == "fidelity":
            bench.trials = list(fidelity_trials(ours, theirs, rule))
        elif rule.kind == "speed":
            speeds = self.evidence.speeds.get(ours.key)
            bench.trials = list(speed_trials(ours, theirs, rule, speeds=speeds, noise=noise))
        else:
            bench.trials = list(size_trials(ours, theirs, rule))
        return bench


def _asked(ours: Measured, theirs: Measured, rule: SuiteRule) -> list[Asked]:
    """Pairs every task of the baseline; one that the candidate has not answered has no pairs."""
    mine, others = ours.shared_parts(theirs), theirs.shared_parts(ours)
    found = []
    for task, items in others.items.items():
        margin, critical = rule.of_task(task[1])
        paired = pair(mine.items.get(task, {}), items)
        parts = mine.part_of(task, paired.names) if mine.part_count > 1 else None
        found.append(Asked(task, paired, margin, critical, parts))
    return found


def _with_noise(trial: Trial, ours: Measured, noise: NoiseFloor | None) -> Trial:
    finding = trial.finding
    counts = finding.counts
    if noise is None or counts is None or counts.won is None or counts.lost is None:
        return trial
    excess = noise.excess_flips(ours.key, finding.place, won=counts.won, lost=counts.lost, n=counts.n)
    return replace(trial, finding=finding.model_copy(update={"excess_flips": excess}))


def _without_numbers(matched: Match, rule: SuiteRule) -> _Bench:
    ours, theirs = matched.candidate, matched.baseline
    verdict = Verdict.MISSING
    if ours is None:
        reason = "the candidate's run has no such cell"
    elif theirs is None:
        verdict, reason = Verdict.NOT_JUDGED, "the baseline has no such cell: nothing to hold it against"
    elif ours.failure and theirs.failure:
        verdict, reason = _both_failed(ours, theirs), f"neither side has numbers: {ours.failure}"
    elif ours.failure:
        reason = f"the candidate has no numbers: {ours.failure}"
    else:
        reason = f"the baseline has no numbers: {theirs.failure}"
    return _Bench(matched, rule, settled=_settled(matched, rule, verdict, reason))


def _both_failed(ours: Measured, theirs: Measured) -> Verdict:
    """What cannot run anywhere is no news; what crashed on both sides is not known to be good."""
    refused = all(record.outcome.value == "unsupported" for side in (ours, theirs) for record in side.records[:1])
    return Verdict.NOT_JUDGED if refused else Verdict.MISSING


def _settled(matched: Match, rule: SuiteRule, verdict: Verdict, reason: str) -> SuiteVerdict:
    named = "any" if rule.kind != "accuracy" else rule.rule
    return SuiteVerdict(place=_place(matched, rule), verdict=verdict, rule=named, reason=reason)


def _place(matched: Match, rule: SuiteRule) -> Place:
    return Place(
        label=matched.side.label,
        candidate=matched.candidate.cell.id if matched.candidate else "",
        baseline=matched.baseline.cell.id if matched.baseline else "",
        suite=matched.side.cell.suite.name,
        metric=rule.kind,
    )


def _suite(bench: _Bench, decided: Mapping[int, Finding]) -> SuiteVerdict:
    """Puts a bench's findings together by its rule."""
    tasks = [decided[id(trial)] for trial in bench.trials]
    place, rule = _place(bench.match, bench.rule), bench.rule
    # What was not answered is missing whether it is critical or not.
    critical = [finding for finding in tasks if finding.critical or finding.verdict is Verdict.MISSING]
    pooled = decided[id(bench.pooled)] if bench.pooled else None
    found = by_rule(rule, [finding.verdict for finding in critical], pooled.verdict if pooled else None)
    if rule.kind != "accuracy":
        return SuiteVerdict(place=place, verdict=found, rule="any", reason=_first_reason(critical, found))
    bad = [finding for finding in critical if finding.verdict in FAILING]
    reason = _first_reason([*bad, *([pooled] if pooled else []), *critical], found)
    return SuiteVerdict(place=place, verdict=found, rule=rule.rule, finding=pooled, reason=reason)


def by_rule(rule: SuiteRule, critical: Sequence[Verdict], pooled: Verdict | None) -> Verdict:
    """Gives a suite's verdict from those of its critical numbers and of all its tasks together, where there is one."""
    if rule.kind != "accuracy" or rule.rule == "every_critical" or pooled is None:
        return worst(critical)
    return worst([pooled, *(verdict for verdict in critical if verdict in FAILING)])


def _first_reason(findings: Sequence[Finding], verdict: Verdict) -> str:
    """Names the finding that decided, unless it is the pooled one, which a suite's verdict carries anyway."""
    found = next((finding for finding in findings if finding.verdict is verdict), None)
    if found is None or verdict in (Verdict.NON_INFERIOR, Verdict.NOT_JUDGED):
        return ""
    where = "" if found.place.task == POOLED else found.place.task or found.place.metric
    told = "; ".join(part for part in ("regressed" if verdict is Verdict.REGRESSED else "", found.reason) if part)
    return f"{where}: {told}" if where and told else told or where


def _warnings(suites: Sequence[SuiteVerdict], mismatches: Sequence[Mismatch]) -> Iterable[str]:
    """Yields what no table of a decision says."""
    for suite in suites:
        if suite.verdict is Verdict.NOT_JUDGED and suite.reason:
            yield f"{suite.place.label} / {suite.place.suite}: {suite.reason}"
    for one in mismatches:
        if one.field == "weights_digest":
            yield f"{one.label} / {one.suite}: candidate and reference ran the very same weights"
        if one.field == "answers":
            yield f"{one.label} / {one.suite}: answers are {SERVED_AGAIN}"
