"""Numbers that are held against a limit: fidelity, which may reject and never accept, and bytes, which are exact.

Near its reference a model's divergence does not predict its score (Nikolić et al. 2026 find no correlation at all
there), so a small divergence proves nothing, while a large one is reason enough to stop before the expensive tasks.
The window of text is the unit: p-values are Student's t over windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from harness.gate.measured import Measured
from harness.gate.policy import Limit, SuiteRule
from harness.gate.trial import Trial
from harness.gate.verdict import Counts, Finding, Kind, Number, Place, Verdict
from harness.record import Interval, Observation
from harness.statistics import windows
from harness.statistics.clusters import RatioOfSums, ratio_of_sums

HIGHER_IS_BETTER = frozenset({"top1_agreement"})
METHOD = "Student's t over windows of text"
SHOWN = "shown, not judged: the policy sets no bound"
BYTES: dict[str, Kind] = {"size_bytes": "size", "peak_bytes": "memory", "peak_anon_bytes": "memory"}


def fidelity_trials(candidate: Measured, baseline: Measured, rule: SuiteRule) -> Iterator[Trial]:
    """Yields a trial for every limit of the rule and every text that the candidate has windows of."""
    ours, theirs = _windows(candidate), _windows(baseline)
    for task, rows in ours.items():
        for limit in rule.limits:
            if windows.knows(rows, limit.metric) and fnmatchcase(task[1], limit.task):
                yield _fidelity(_place(candidate, baseline, (*task, limit.metric)), limit, rows, theirs.get(task, []))


def size_trials(candidate: Measured, baseline: Measured, rule: SuiteRule) -> Iterator[Trial]:
    """Yields a trial for every limit on bytes: of the weights on disk, or of a metric of the memory probe."""
    for limit in rule.limits:
        if limit.metric == "size_bytes":
            ours, theirs = candidate.side().size_bytes, baseline.side().size_bytes
            if ours is not None:
                yield _bytes(_place(candidate, baseline, ("", "", limit.metric)), limit, (ours, theirs))
        for (evaluation, task, name), metric in sorted(candidate.metrics.items()):
            if name == limit.metric and fnmatchcase(task, limit.task) and not candidate.is_emulated:
                other = baseline.metrics.get((evaluation, task, name))
                known = None if other is None or baseline.is_emulated else other.value
                yield _bytes(_place(candidate, baseline, (evaluation, task, name)), limit, (metric.value, known))


def _windows(side: Measured) -> dict[tuple[str, str], list[Observation]]:
    found: dict[tuple[str, str], list[Observation]] = {}
    for row in (row for part in side.rows for row in part if windows.is_window(row)):
        found.setdefault((row.evaluation, row.task), []).append(row)
    return found


def _place(candidate: Measured, baseline: Measured, what: tuple[str, str, str]) -> Place:
    return Place(
        label=candidate.label,
        candidate=candidate.cell.id,
        baseline=baseline.cell.id,
        suite=candidate.cell.suite.name,
        evaluation=what[0],
        task=what[1],
        metric=what[2],
    )


def _fidelity(place: Place, limit: Limit, ours: Sequence[Observation], theirs: Sequence[Observation]) -> Trial:
    name = limit.metric
    found = windows.mean(ours, name)
    sign = -1.0 if name in HIGHER_IS_BETTER else 1.0
    bound = limit.at_least if limit.at_least is not None else limit.at_most
    tested: RatioOfSums | None = found
    if limit.margin is not None:
        tested, bound = _growth(ours, theirs, name, factor=1 + sign * limit.margin), 0.0
    reason, p = "", None
    if bound is None:
        reason = SHOWN
    elif tested is None:
        reason = "the baseline has no windows of this text"
    elif tested.standard_error is None:
        reason = "too few windows to tell their spread"
    else:
        p = _upper_p(sign * (tested.value - bound) / tested.standard_error, tested.clusters)
    interval = found.interval()
    finding = Finding(
        place=place,
        kind="fidelity",
        verdict=Verdict.NOT_JUDGED,
        scale="value" if limit.margin is None else "ratio",
        margin=bound if limit.margin is None else limit.margin,
        counts=Counts(n=found.clusters),
        baseline=windows.mean(theirs, name).value if theirs else None,
        candidate=found.value,
        unit="nats" if name.startswith(("kl", "nll", "ln")) else "fraction",
        measured=Number(
            value=found.value,
            interval=interval and Interval(low=interval[0], high=interval[1], method=METHOD),
        ),
        p_breach=p,
        method=METHOD,
        reason=reason,
        notes=("fidelity can reject and cannot accept: near the reference it does not predict scores",),
    )
    return Trial(finding, p_breach=p, can_accept=False)


def _growth(
    ours: Sequence[Observation], theirs: Sequence[Observation], name: str, *, factor: float
) -> RatioOfSums | None:
    """Gives candidate - factor x baseline per token, over the windows that both sides read."""
    before = {row.sample: row for row in theirs}
    both = [row for row in ours if row.sample in before]
    if not both:
        return None
    mine, tokens = windows.sums(both, name)
    others, _ = windows.sums([before[row.sample] for row in both], name)
    return ratio_of_sums([own - factor * other for own, other in zip(mine, others, strict=True)], tokens)


def _upper_p(t: float, clusters: int) -> float:
    from scipy.special import stdtr

    return float(stdtr(clusters - 1, -t))


def _bytes(place: Place, limit: Limit, values: tuple[float, float | None]) -> Trial:
    ours, theirs = values
    margin = limit.at_most if limit.margin is None else limit.margin
    allowed = limit.at_most if limit.margin is None else theirs and theirs * (1 + limit.margin)
    verdict = Verdict.NOT_JUDGED if margin is None else Verdict.MISSING
    if allowed is not None:
        verdict = Verdict.REGRESSED if ours > allowed else Verdict.NON_INFERIOR
    finding = Finding(
        place=place,
        kind=BYTES.get(limit.metric, "memory"),
        verdict=verdict,
        scale="value" if limit.margin is None else "ratio",
        margin=margin,
        baseline=theirs,
        candidate=ours,
        unit="bytes",
        ratio=Number(value=ours / theirs) if theirs else None,
        method="counted, not estimated",
        reason=SHOWN if margin is None else "the baseline has no such number" if allowed is None else "",
    )
    return Trial(finding, settled=verdict)
