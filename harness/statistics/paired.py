"""How much of its reference a compressed model keeps, on the very same items.

Retention is R = sum(candidate) / sum(reference). A reference that scores 0.60 and a candidate that scores 0.57 leave it
open whether 3 points were lost or the questions were lucky; that both answered the *same* questions, and nearly always
alike, settles most of it. Intervals are inverted score tests (see `contrasts`): every θ belongs to the interval whose
test does not reject it. For items that are right or wrong that is Tang's interval, for other scores E. C. Fieller's
(JRSS B 16, 1954, 175-185). Several tasks give a suite-level R of weighted sums, Σ w ȳ_candidate / Σ w ȳ_reference: a
mean of the tasks' ratios would be ruled by whichever task the reference is worst at.

Known: items are taken as independent. Items that share a passage are not, and the interval is then too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.record import Interval
from harness.statistics.contrasts import Contrast, Pairs, Stratum, null_variance
from harness.statistics.intervals import normal_quantile, student_quantile

TANG, FIELLER, STRATIFIED, SCORE = "tang-score", "fieller-t", "stratified-score", "score"
TANGO, PAIRED_T = "tango-score", "paired-t"

ZERO = 1e-12
"""Sums of scores below this are rounding."""
NEXT = 1e-9
"""How far beside an estimate its interval is looked for, as a share of the way to the end of the scale."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; where either is absent, `reason` says why. `n` counts items."""

    value: float | None
    interval: Interval | None
    n: int
    reason: str = ""

    def excludes(self, value: float) -> bool:
        """True when the interval lies wholly on one side of a value."""
        return self.interval is not None and not self.interval.low <= value <= self.interval.high


def retention(tasks: Sequence[Pairs], *, weights: Sequence[float] | None = None, level: float = 0.95) -> Estimate:
    """Gives Σ w ȳ_candidate / Σ w ȳ_reference of one task or several, every task weighing the same by default.

    No items of 100 answered differently still leave room for loss: with a items right in both and none answered
    differently the interval is [a / (a + z²), (a + z²) / a].

    >>> same = Pairs((1.0,) * 60 + (0.0,) * 40, (1.0,) * 60 + (0.0,) * 40)
    >>> found = retention([same])
    >>> found.value, round(found.interval.low, 4), round(found.interval.high, 4)
    (1.0, 0.9398, 1.064)
    """
    contrast = _contrast(tasks, weights, [0.0] * len(tasks))
    if contrast.means[1] <= ZERO:
        return Estimate(None, None, _items(tasks), "the reference scored nothing, so there is nothing to keep")
    return _ratio(contrast, tasks, floor=0.0, level=level)


def chance_corrected_retention(
    tasks: Sequence[Pairs], *, weights: Sequence[float] | None = None, level: float = 0.95
) -> Estimate:
    """Gives Σ w (ȳ_candidate - g) / Σ w (ȳ_reference - g), where g is what guessing scores on the same items.

    With four options a model that lost everything still keeps a quarter of a perfect reference's score; counted from
    chance it keeps nothing. Absent where the reference is not significantly better than guessing: a share of something
    that may be zero has no bounds. g is taken as known.
    """
    n = _items(tasks)
    origins = [task.chance for task in tasks if task.chance is not None]
    if len(origins) < len(tasks):
        return Estimate(None, None, n, "what guessing would score is not known for every task")
    contrast = _contrast(tasks, weights, origins)
    if contrast.means[1] <= ZERO or contrast.excess(math.pi / 2, level=level) <= 0:
        return Estimate(None, None, n, "the reference is not significantly better than guessing")
    return _ratio(contrast, tasks, floor=-math.inf, level=level)


def difference(pairs: Pairs, *, level: float = 0.95) -> Estimate:
    """Gives the mean of candidate - reference: Tango's interval for right-or-wrong items, paired t otherwise."""
    plain = Stratum.of(pairs)
    value = plain.means[0] - plain.means[1]
    if plain.counts is None:
        return _paired_t(plain, value, level)
    counts, z = plain.counts, normal_quantile(level)

    def excess(shift: float) -> float:
        spread = null_variance(counts, (-shift, 1 - shift, -1 - shift, -shift))
        return abs(value - shift) - z * math.sqrt(spread / pairs.n)

    low, high = _edge(excess, value, -1.0), _edge(excess, value, 1.0)
    # A difference cannot leave [-1, 1], so an end that nothing rules out is the end of the scale.
    ends = (-1.0 if low is None else low, 1.0 if high is None else high)
    return Estimate(value, Interval(low=ends[0], high=ends[1], level=level, method=TANGO), pairs.n)


def mcnemar(pairs: Pairs, *, harm_only: bool = False) -> float:
    """Gives the exact p-value of "as many items were lost as won" from the items answered differently.

    Under the hypothesis each of the changed items is lost with probability 1/2 (Q. McNemar, Psychometrika 12, 1947,
    153-157; exact binomial form). `harm_only` asks for more losses than gains, one-sided, as in arXiv 2602.10144.

    >>> mcnemar(Pairs((0, 0, 0, 1), (1, 1, 1, 0)), harm_only=True)  # P(at least 3 of 4) = 5/16
    0.3125
    """
    from scipy.special import bdtr

    _, won, lost, _ = pairs.counts
    changed = won + lost
    if changed == 0:
        return 1.0
    if harm_only:
        return float(bdtr(won, changed, 0.5))
    return min(1.0, 2 * float(bdtr(min(won, lost), changed, 0.5)))


def _items(tasks: Sequence[Pairs]) -> int:
    return sum(task.n for task in tasks)


def _contrast(tasks: Sequence[Pairs], weights: Sequence[float] | None, origins: Sequence[float]) -> Contrast:
    assert tasks
    chosen = tuple(weights) if weights is not None else (1.0,) * len(tasks)
    assert len(chosen) == len(tasks)
    assert min(chosen) > 0
    strata = tuple(Stratum.of(task, origin=origin) for task, origin in zip(tasks, origins, strict=True))
    return Contrast(strata, chosen)


def _ratio(contrast: Contrast, tasks: Sequence[Pairs], *, floor: float, level: float) -> Estimate:
    """Inverts the score test from the estimate outwards; `floor` is what a ratio cannot fall below."""
    own, other = contrast.means
    value, n = own / other, _items(tasks)
    if any(task.n < 2 and not task.is_binary for task in tasks):
        return Estimate(value, None, n, "a single item tells nothing about the spread")
    if contrast.is_constant:
        return Estimate(value, None, n, f"the scores are in the same proportion on all {n} items: no spread to go by")

    def excess(phi: float) -> float:
        return contrast.excess(phi, level=level)

    centre, lowest = math.atan2(own, other), max(math.atan(floor), -math.pi / 2)
    high = _edge(excess, centre, math.pi / 2)
    low = _edge(excess, centre, lowest)
    if high is None or (low is None and floor == -math.inf):
        return Estimate(value, None, n, "the reference scored too little for a ratio to have bounds")
    bottom = floor if low is None else math.tan(low)
    method = _method(contrast)
    return Estimate(value, Interval(low=bottom, high=math.tan(high), level=level, method=method), n)


def _method(contrast: Contrast) -> str:
    if len(contrast.strata) > 1:
        return STRATIFIED
    if contrast.strata[0].counts is None:
        return FIELLER
    return TANG if contrast.strata[0].origin == 0 else SCORE


def _edge(excess: Callable[[float], float], centre: float, end: float) -> float | None:
    """Gives where the test starts to reject on the way from `centre` to `end`, or None when it never does."""
    from scipy.optimize import brentq

    if centre == end or excess(end) <= 0:
        return None
    # Where no answer differs, mean and variance are both zero at the estimate itself, and negative right beside it.
    beside = centre + NEXT * (end - centre)
    if excess(beside) >= 0:
        return centre
    return float(brentq(excess, beside, end, xtol=1e-13))


def _paired_t(stratum: Stratum, value: float, level: float) -> Estimate:
    variance = 2 * stratum.sample_variance(math.pi / 4)
    if stratum.n < 2 or variance <= ZERO * ZERO:
        return Estimate(value, None, stratum.n, "the differences have no spread to go by")
    reach = student_quantile(level, degrees=stratum.n - 1) * math.sqrt(variance / stratum.n)
    return Estimate(value, Interval(low=value - reach, high=value + reach, level=level, method=PAIRED_T), stratum.n)
