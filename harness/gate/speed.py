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
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from statistics import NormalDist

from harness.gate.measured import Measured
from harness.gate.noise import NoiseFloor
from harness.gate.policy import Limit, SuiteRule
from harness.gate.trial import Trial, place_of
from harness.gate.verdict import Counts, Finding, Mismatch, Number, Place, Verdict
from harness.record import Metric
from harness.statistics.launches import (
    BASELINE,
    BLOCKS_MIN,
    CANDIDATE,
    Launch,
    SlowDown,
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

    There are none where both sides are the `same_artifact`: bytes do not race against themselves. Where there are none
    although they were wanted, `notes` say why, or `mismatches` what forbade it.
    """

    launches: Mapping[Timed, Sequence[Launch]]
    notes: tuple[str, ...] = ()
    same_artifact: bool = False
    mismatches: tuple[Mismatch, ...] = ()


def speed_trials(
    candidate: Measured, baseline: Measured, rule: SuiteRule, *, speeds: Speeds | None, noise: NoiseFloor | None = None
) -> Iterator[Trial]:
    """Yields a trial for each limit of the rule and each shape that was timed, by the candidate or by the baseline."""
    yield from _gone(candidate, baseline, rule)
    for (evaluation, task, name), metric in sorted(candidate.metrics.items()):
        for limit in rule.limits:
            if name == limit.metric and fnmatchcase(task, limit.task):
                place = place_of(candidate, baseline, (evaluation, task, name))
                if candidate.is_emulated or baseline.is_emulated:
                    yield _open(place, limit, "unpacked weights have no speed of their own", Verdict.NOT_JUDGED)
                    continue
                if speeds and speeds.same_artifact:
                    yield _open(place, limit, SAME, Verdict.NOT_JUDGED)
                    continue
                found = speeds.launches.get((evaluation, task, name), ()) if speeds else ()
                if not found or limit.margin is None:
                    told = f"not timed by turns: {'; '.join(speeds.notes)}" if speeds and speeds.notes else ALONE
                    trial = _open(place, limit, told, Verdict.INCONCLUSIVE if limit.is_bound else Verdict.NOT_JUDGED)
                    yield _beside(trial, metric, baseline.metrics.get((evaluation, task, name)))
                    continue
                known = noise.speed(candidate.key, place) if noise else None
                timed = _Timed(metric, tuple(found), known.block_sd if known else None, speeds.notes if speeds else ())
                yield timed.trial(place, limit.margin)


def _gone(candidate: Measured, baseline: Measured, rule: SuiteRule) -> Iterator[Trial]:
    """Yields what the baseline timed and the candidate did not, of what the rule bounds."""
    if candidate.is_emulated or baseline.is_emulated:
        return
    for evaluation, task, name in sorted(baseline.metrics.keys() - candidate.metrics.keys()):
        for limit in rule.limits:
            if name == limit.metric and fnmatchcase(task, limit.task) and limit.is_bound:
                place = place_of(candidate, baseline, (evaluation, task, name))
                yield _open(place, limit, "the candidate has no such number, and the baseline has", Verdict.MISSING)


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


def _beside(trial: Trial, ours: Metric, theirs: Metric | None) -> Trial:
    """Shows two launches of two times beside each other; nothing follows from them."""
    known = {
        "baseline": theirs.value if theirs else None,
        "candidate": ours.value,
        "unit": ours.unit,
        "ratio": Number(value=ours.value / theirs.value) if theirs and theirs.value else None,
    }
    return replace(trial, finding=trial.finding.model_copy(update=known))


@dataclass(frozen=True)
class _Timed:
    """What was timed by turns, the deviation of blocks that a pinned noise floor knows, and what happened meanwhile."""

    metric: Metric
    launches: tuple[Launch, ...]
    pinned_sd: float | None
    notes: tuple[str, ...]

    def trial(self, place: Place, tolerated: float) -> Trial:
        """Tests the loss of speed against the tolerated one to pass, and against that or the noise to fail."""
        ratio = log_ratio(self.launches)
        margin = self._margin_to_fail(tolerated, blocks=ratio.n)
        finding = self._finding(place, ratio, tolerated if margin is None else margin).model_copy(
            update={"notes": (*self.notes, *self._told(tolerated, margin))}
        )
        passes, harm = self._test(ratio, tolerated), self._test(ratio, 0.0)
        fails = None if margin is None else self._test(ratio, margin)
        if margin is None or passes is None or fails is None:
            why = f"{ratio.n} blocks; {BLOCKS_MIN} are needed to know the noise" if margin is None else ratio.reason
            return Trial(finding.model_copy(update={"reason": why}), settled=Verdict.INCONCLUSIVE)
        told = {
            "p_accept": passes.p_accept,
            "p_breach": fails.p_breach,
            "p_harm": harm.p_breach if harm else None,
        }
        lost = -math.log(ratio.value) if self.metric.higher_is_better else math.log(ratio.value)

        def plan(alpha_accept: float, alpha_breach: float) -> MoreItems | None:
            return _more_blocks(ratio, (tolerated, margin), (alpha_accept, alpha_breach), lost=lost)

        return Trial(finding.model_copy(update=told), p_accept=passes.p_accept, p_breach=fails.p_breach, plan=plan)

    def _margin_to_fail(self, tolerated: float, *, blocks: int) -> float | None:
        """Gives the margin that noise widens; a pass still has to be within what is tolerated."""
        sd = max((one for one in (own_noise(self.launches), self.pinned_sd) if one is not None), default=None)
        return None if sd is None else effective_margin(tolerated, sd=sd, blocks=blocks)

    def _test(self, ratio: SpeedRatio, margin: float) -> SlowDown | None:
        return slow_down(ratio, margin=margin, higher_is_better=self.metric.higher_is_better)

    def _finding(self, place: Place, ratio: SpeedRatio, margin: float) -> Finding:
        return Finding(
            place=place,
            kind="speed",
            verdict=Verdict.INCONCLUSIVE,
            scale="ratio",
            margin=margin,
            counts=Counts(n=ratio.n),
            baseline=_typical(self.launches, BASELINE),
            candidate=_typical(self.launches, CANDIDATE),
            unit=self.metric.unit,
            ratio=Number(value=ratio.value, interval=ratio.interval, reason=ratio.reason),
            method=METHOD,
        )

    def _told(self, tolerated: float, margin: float | None) -> Iterator[str]:
        if margin is not None and margin > tolerated:
            yield f"the margin of {tolerated:.1%} is within the machine's noise: to fail, three sd must be lost"
        for one in contaminated(self.launches):
            yield f"block {one.block}: launches of the {one.side} are {one.spread:.0%} apart"


def _typical(launches: Sequence[Launch], side: str) -> float:
    return math.exp(statistics.fmean(launch.log_median for launch in launches if launch.side == side))


def _more_blocks(
    ratio: SpeedRatio, margins: tuple[float, float], alphas: tuple[float, float], *, lost: float
) -> MoreItems | None:
    """Gives how many more blocks would settle it with 80 % power, by the normal approximation; None in between.

    `margins` and `alphas` are those of a pass and of a failure; `lost` is the loss of speed as a logarithm.
    """
    to_pass, to_fail = (-math.log1p(-margin) - max(lost, 0.0) for margin in margins)
    room, alpha = (to_pass, alphas[0]) if to_pass > 0 else (to_fail, alphas[1])
    if ratio.n < 2 or room == 0 or (to_pass <= 0 <= to_fail):
        return None
    quantile = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(0.8)
    needed = math.ceil((quantile * statistics.stdev(ratio.blocks) / room) ** 2)
    return MoreItems(max(1, needed - ratio.n), "accept" if room > 0 else "breach")
