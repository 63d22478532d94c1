"""Speed from launches that took turns with the pinned baseline's in the same night, and from nothing else.

Times of two nights differ by what the machine did in them, so records alone never judge speed: without interleaved
launches the verdict is open and says how to get them. The margin is what the policy tolerates or three standard
deviations of the baseline against itself, whichever is more: a gate that trips on the machine's own noise is switched
off within a week.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import NormalDist

from harness.gate.measured import Measured
from harness.gate.noise import NoiseFloor
from harness.gate.policy import Limit, SuiteRule
from harness.gate.trial import Trial
from harness.gate.verdict import Counts, Finding, Number, Place, Verdict
from harness.record import Metric
from harness.statistics.launches import (
    BASELINE,
    BLOCKS_MIN,
    CANDIDATE,
    Launch,
    SpeedRatio,
    contaminated,
    effective_margin,
    log_ratio,
    slow_down,
)
from harness.statistics.noninferiority import MoreItems

Timed = tuple[str, str, str]
"""An evaluation, a task and a metric."""
METHOD = "Student's t over interleaved blocks of launches"
ALONE = "speed was not measured by turns with the baseline; harness nightly does that"

SAME = "the very bytes of the baseline: on one runtime they have one speed"


@dataclass(frozen=True)
class Speeds:
    """A cell's interleaved launches by what was timed, and what happened while they were measured.

    There are none where both sides are the `same_artifact`: bytes do not race against themselves.
    """

    launches: Mapping[Timed, Sequence[Launch]]
    notes: tuple[str, ...] = ()
    same_artifact: bool = False


def speed_trials(
    candidate: Measured, baseline: Measured, rule: SuiteRule, *, speeds: Speeds | None, noise: NoiseFloor | None = None
) -> Iterator[Trial]:
    """Yields a trial for each limit of the rule and each shape that was timed."""
    for (evaluation, task, name), metric in sorted(candidate.metrics.items()):
        for limit in rule.limits:
            if name == limit.metric and fnmatchcase(task, limit.task):
                place = Place(
                    label=candidate.label,
                    candidate=candidate.cell.id,
                    baseline=baseline.cell.id,
                    suite=candidate.cell.suite.name,
                    evaluation=evaluation,
                    task=task,
                    metric=name,
                )
                if candidate.is_emulated or baseline.is_emulated:
                    yield _open(place, limit, "unpacked weights have no speed of their own", Verdict.NOT_JUDGED)
                    continue
                if speeds and speeds.same_artifact:
                    yield _open(place, limit, SAME, Verdict.NOT_JUDGED)
                    continue
                found = speeds.launches.get((evaluation, task, name), ()) if speeds else ()
                if not found or limit.margin is None:
                    yield _alone(place, limit, metric, baseline.metrics.get((evaluation, task, name)))
                    continue
                notes, known = speeds.notes if speeds else (), noise.speed(candidate.key, place) if noise else None
                sd = known.block_sd if known else None
                yield _tested(place, limit, found, (metric.higher_is_better, metric.unit, sd, notes))


def own_noise(launches: Sequence[Launch]) -> float | None:
    """Gives what the sd of a block's log ratio would be if both sides were the baseline, from its own launches.

    Two launches of the baseline in a block differ by 2 σ² in variance, as does the difference of two sides' means of
    two launches each by σ²: the sd of the differences over √2. None for fewer than two blocks that have both.
    """
    blocks: dict[int, list[float]] = {}
    for launch in launches:
        if launch.side == BASELINE:
            blocks.setdefault(launch.block, []).append(launch.log_median)
    apart = [found[0] - found[1] for found in blocks.values() if len(found) == 2]
    # The true mean difference is zero up to drift, which alternating orders take out of the mean and not of the spread.
    return statistics.stdev(apart) / math.sqrt(2) if len(apart) > 1 else None


def _open(place: Place, limit: Limit, reason: str, verdict: Verdict) -> Trial:
    finding = Finding(place=place, kind="speed", verdict=verdict, scale="ratio", margin=limit.margin, reason=reason)
    return Trial(finding, settled=verdict)


def _alone(place: Place, limit: Limit, ours: Metric, theirs: Metric | None) -> Trial:
    """Shows two launches of two times beside each other; nothing follows from them."""
    verdict = Verdict.NOT_JUDGED if limit.margin is None else Verdict.INCONCLUSIVE
    trial = _open(place, limit, ALONE, verdict)
    known = {
        "baseline": theirs.value if theirs else None,
        "candidate": ours.value,
        "unit": ours.unit,
        "ratio": Number(value=ours.value / theirs.value) if theirs and theirs.value else None,
    }
    return Trial(trial.finding.model_copy(update=known), settled=verdict)


def _tested(
    place: Place, limit: Limit, launches: Sequence[Launch], known: tuple[bool, str, float | None, tuple[str, ...]]
) -> Trial:
    higher_is_better, unit, pinned_sd, notes = known
    assert limit.margin is not None
    ratio = log_ratio(launches)
    sd = max((one for one in (own_noise(launches), pinned_sd) if one is not None), default=None)
    margin = effective_margin(limit.margin, sd=sd, blocks=ratio.n) if sd is not None else None
    widened = margin is not None and margin > limit.margin
    finding = Finding(
        place=place,
        kind="speed",
        verdict=Verdict.INCONCLUSIVE,
        scale="ratio",
        margin=limit.margin if margin is None else margin,
        counts=Counts(n=ratio.n),
        baseline=_typical(launches, BASELINE),
        candidate=_typical(launches, CANDIDATE),
        unit=unit,
        ratio=Number(value=ratio.value, interval=ratio.interval, reason=ratio.reason),
        method=METHOD,
        notes=(
            *notes,
            *(
                [f"the margin of {limit.margin:.1%} is within the machine's noise: three sd are used"]
                if widened
                else []
            ),
            *(
                f"block {one.block}: launches of the {one.side} are {one.spread:.0%} apart"
                for one in contaminated(launches)
            ),
        ),
    )
    tests = slow_down(ratio, margin=margin, higher_is_better=higher_is_better) if margin is not None else None
    if margin is None or tests is None:
        why = f"{ratio.n} blocks; {BLOCKS_MIN} are needed to know the noise" if margin is None else ratio.reason
        return Trial(finding.model_copy(update={"reason": why}), settled=Verdict.INCONCLUSIVE)
    harm = slow_down(ratio, margin=0.0, higher_is_better=higher_is_better)
    told = {
        "p_accept": tests.p_accept,
        "p_breach": tests.p_breach,
        "p_harm": harm.p_breach if harm else None,
    }

    def plan(alpha_accept: float, alpha_breach: float) -> MoreItems | None:
        return _more_blocks(ratio, margin, (alpha_accept, alpha_breach), higher_is_better=higher_is_better)

    return Trial(finding.model_copy(update=told), p_accept=tests.p_accept, p_breach=tests.p_breach, plan=plan)


def _typical(launches: Sequence[Launch], side: str) -> float:
    return math.exp(statistics.fmean(launch.log_median for launch in launches if launch.side == side))


def _more_blocks(
    ratio: SpeedRatio, margin: float, alphas: tuple[float, float], *, higher_is_better: bool
) -> MoreItems | None:
    """Gives how many more blocks would settle it with 80 % power, by the normal approximation; None on the margin."""
    lost = -math.log(ratio.value) if higher_is_better else math.log(ratio.value)
    room = -math.log1p(-margin) - max(lost, 0.0)
    if ratio.n < 2 or room == 0:
        return None
    quantile = NormalDist().inv_cdf(1 - alphas[room < 0]) + NormalDist().inv_cdf(0.8)
    needed = math.ceil((quantile * statistics.stdev(ratio.blocks) / room) ** 2)
    return MoreItems(max(1, needed - ratio.n), "accept" if room > 0 else "breach")
