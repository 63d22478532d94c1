"""Numbers that are held against a limit: fidelity, which may reject and never accept, and bytes, which are exact.

Near its reference a model's divergence does not predict its score (Nikolić et al. 2026 find no correlation at all
there), so a small divergence proves nothing, while a large one is reason enough to stop before the expensive tasks.
The window of text is the unit: p-values are Student's t over windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

from harness.gate.measured import Measured
from harness.gate.policy import Limit, SuiteRule
from harness.gate.trial import Trial, place_of
from harness.gate.verdict import Counts, Finding, Kind, Number, Place, Verdict
from harness.record import Interval, Observation
from harness.statistics import windows
from harness.statistics.clusters import RatioOfSums, ratio_of_sums

HIGHER_IS_BETTER = frozenset({"top1_agreement", "flips_wrong_to_right"})
METHOD = "Student's t over windows of text"
NO_NUMBER = "the candidate has no such number, and the baseline has"
SHOWN = "shown, not judged: the policy sets no bound"
BYTES: dict[str, Kind] = {"size_bytes": "size", "peak_bytes": "memory", "peak_anon_bytes": "memory"}


def fidelity_trials(candidate: Measured, baseline: Measured, rule: SuiteRule) -> Iterator[Trial]:
    """Yields a trial for every limit of the rule and every text that a side has windows of."""
    ours, theirs = _windows(candidate), _windows(baseline)
    for task in (*ours, *(task for task in theirs if task not in ours)):
        rows, others = ours.get(task, []), theirs.get(task, [])
        for limit in (limit for limit in rule.limits if fnmatchcase(task[1], limit.task)):
            place = place_of(candidate, baseline, (*task, limit.metric))
            if rows and windows.knows(rows, limit.metric):
                yield _complete(_fidelity(place, limit, rows, others), limit, rows, others)
            elif others and windows.knows(others, limit.metric) and limit.is_bound:
                yield _gone(place, "fidelity", limit, f"the candidate has none of the baseline's {len(others)} windows")


def _complete(trial: Trial, limit: Limit, ours: Sequence[Observation], theirs: Sequence[Observation]) -> Trial:
    """Says that windows are missing, where some are: a proven regression stays one, and all else is not known."""
    gone = {row.sample for row in theirs} - {row.sample for row in ours}
    if not gone or not limit.is_bound:
        return trial
    reason = f"{len(gone)} of the baseline's {len(theirs)} windows were not read"
    counts = Counts(n=len(ours), missing=len(gone))
    finding = trial.finding.model_copy(update={"reason": reason, "counts": counts})
    return replace(trial, finding=finding, settled=Verdict.MISSING)


def _gone(place: Place, kind: Kind, limit: Limit, reason: str) -> Trial:
    scale: Literal["value", "ratio"] = "value" if limit.margin is None else "ratio"
    finding = Finding(place=place, kind=kind, verdict=Verdict.MISSING, scale=scale, margin=limit.bound, reason=reason)
    return Trial(finding, settled=Verdict.MISSING)


def size_trials(candidate: Measured, baseline: Measured, rule: SuiteRule) -> Iterator[Trial]:
    """Yields a trial for every limit on bytes: of the weights on disk, or of a metric of the memory probe."""
    for limit in rule.limits:
        if limit.metric == "size_bytes":
            ours, theirs = candidate.side().size_bytes, baseline.side().size_bytes
            place = place_of(candidate, baseline, ("", "", limit.metric))
            if ours is not None:
                yield _bytes(place, limit, (ours, theirs))
            elif theirs is not None and limit.is_bound:
                yield _gone(place, "size", limit, NO_NUMBER)
        if candidate.is_emulated:
            continue
        found, known = (_measured(side, limit) for side in (candidate, baseline))
        for what in sorted(found.keys() | known.keys()):
            place = place_of(candidate, baseline, what)
            if what in found:
                yield _bytes(place, limit, (found[what], known.get(what)))
            elif limit.is_bound:
                yield _gone(place, BYTES.get(limit.metric, "memory"), limit, NO_NUMBER)


def _measured(side: Measured, limit: Limit) -> dict[tuple[str, str, str], float]:
    """Gives the numbers of the limit's metric; none of weights that were not packed."""
    return {
        (evaluation, task, name): metric.value
        for (evaluation, task, name), metric in side.metrics.items()
        if name == limit.metric and fnmatchcase(task, limit.task) and not side.is_emulated
    }


def _windows(side: Measured) -> dict[tuple[str, str], list[Observation]]:
    found: dict[tuple[str, str], list[Observation]] = {}
    for row in (row for part in side.rows for row in part if windows.is_window(row)):
        found.setdefault((row.evaluation, row.task), []).append(row)
    return found


def _fidelity(place: Place, limit: Limit, ours: Sequence[Observation], theirs: Sequence[Observation]) -> Trial:
    name = limit.metric
    found = windows.mean(ours, name)
    from_below = limit.at_least is not None or (limit.margin is not None and name in HIGHER_IS_BETTER)
    sign = -1.0 if from_below else 1.0
    bound = limit.at_least if limit.at_least is not None else limit.at_most
    tested: RatioOfSums | None = found
    if limit.margin is not None:
        tested, bound = _growth(ours, theirs, limit, sign=sign), 0.0
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
        unit=windows.UNITS[name],
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
    ours: Sequence[Observation], theirs: Sequence[Observation], limit: Limit, *, sign: float
) -> RatioOfSums | None:
    """Gives per token what the candidate has beyond what the margin and the slack allow, over windows that both read.

    `sign` is 1 where less is better and -1 where more is.
    """
    assert limit.margin is not None
    factor, name = 1 + sign * limit.margin, limit.metric
    before = {row.sample: row for row in theirs}
    both = [row for row in ours if row.sample in before]
    if not both:
        return None
    mine, tokens = windows.sums(both, name)
    others, _ = windows.sums([before[row.sample] for row in both], name)
    excess = [
        own - factor * other - sign * limit.slack * count
        for own, other, count in zip(mine, others, tokens, strict=True)
    ]
    return ratio_of_sums(excess, tokens)


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
