"""Two cells beside each other: every task, fidelity, speed, memory, size, and the items that changed."""

from __future__ import annotations

from harness.gate.changed import changed_items
from harness.gate.judge import Evidence, judge_matches
from harness.gate.matching import Match
from harness.gate.measured import Measured
from harness.gate.policy import Policy
from harness.gate.verdict import CellComparison, Verdict


def compare(
    candidate: Measured, baseline: Measured, policy: Policy, *, evidence: Evidence | None = None
) -> CellComparison:
    """Compares two cells, whatever they are called; breaches are corrected over the numbers of this pair."""
    judged = judge_matches([Match(candidate, baseline)], policy, evidence=evidence)
    scores = next((suite for suite in judged.suites if suite.place.metric == "accuracy"), None)
    said = scores or next(iter(judged.suites), None)
    return CellComparison(
        baseline=baseline.side(),
        candidate=candidate.side(),
        verdict=said.verdict if said else Verdict.NOT_JUDGED,
        suite=said,
        findings=judged.findings,
        mismatches=judged.mismatches,
        changed=changed_items(candidate, baseline),
    )
