"""Is the loss below a margin, above it, or neither yet: one-sided tests of paired answers.

"No significant difference" is what too few items look like, so a loss is held against a margin from both sides. With
y the reference's and x the candidate's scores of the same items, the loss is at most δ exactly when the mean of

    z = x - (1 - δ) y    (retention: a share δ of the reference's score)
    z = x - y + δ        (difference: δ points of score)

is not below zero. `p_accept` speaks against "the loss is δ or more", `p_breach` against "it is δ or less".

Items that are right or wrong, one task and no clusters: the score tests of N.-S. Tang, M.-L. Tang and I. S. F. Chan
(Statistics in Medicine 22, 2003, 1217-1233) and of T. Tango (Statistics in Medicine 17, 1998, 891-908), whose standard
error is the likeliest one if the loss were exactly δ. Where few answers differ the observed spread claims up to three
times as many false proofs as promised, and these do not: ten answers alike prove nothing. Other scores, means of
repeated answers and items in clusters: Student's t of the clusters' spread, held up by that likeliest error where few
answers differ (see `clusters`). Several tasks are strata of one sum, Σ w z̄ (see `contrasts.Contrast`).

Known: a t test of a few clusters takes them as alike; fewer than ten is a thin ground, and 20 to 60 unequal ones made
a nominal 5 % into 6.0 to 6.6 % in simulations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, variance
from typing import Literal

from harness.statistics.clusters import CLUSTER_FIELLER, CLUSTER_T, ClusteredPairs
from harness.statistics.contrasts import SIDES, Pairs, Stratum, null_variance
from harness.statistics.intervals import wilson_interval
from harness.statistics.paired import FIELLER, PAIRED_T, STRATIFIED, TANG, TANGO, ZERO

Scale = Literal["retention", "difference"]
Clusters = tuple[str, ...] | None
Counts = tuple[int, int, int, int]
"""Both right, only the candidate, only the reference, neither."""

FEW = 10
"""Fewer changed answers than this say little about how many will change."""


@dataclass(frozen=True)
class LossTest:
    """A loss held against a margin; `value` is positive for worse, and `n` counts items.

    `p_harm` speaks against "nothing was lost". What could not be computed is None, and `reason` says why.
    """

    value: float | None
    p_accept: float | None
    p_breach: float | None
    p_harm: float | None
    method: str
    n: int
    reason: str = ""


@dataclass(frozen=True)
class MoreItems:
    """How many more items would settle a comparison, and which way: loss below the margin, or above it."""

    n: int
    towards: Literal["accept", "breach"]


@dataclass(frozen=True)
class Line:
    """The score z = candidate - keep * reference + shift, whose mean is zero when the loss is at the margin."""

    keep: float
    shift: float

    @classmethod
    def at(cls, margin: float, scale: Scale) -> Line:
        """Gives the line of a margin; a margin of 0 is the same on both scales."""
        assert 0 <= margin < 1, margin
        return cls(1.0 - margin, 0.0) if scale == "retention" else cls(1.0, margin)

    @property
    def values(self) -> tuple[float, ...]:
        """What each of the four answers to a right-or-wrong item scores."""
        return tuple(own - self.keep * other + self.shift for own, other in SIDES)


@dataclass(frozen=True)
class _Part:
    """One task's share of the sum: the mean of z, that mean's variance, and the degrees that variance is known with."""

    mean: float
    variance: float
    degrees: float | None


def score_statistic(counts: Sequence[int], *, margin: float, scale: Scale) -> float | None:
    """Gives Tang's or Tango's statistic of right-or-wrong items, standard normal when the loss is at the margin.

    `counts` are both right, only the candidate, only the reference, neither; large values speak for a loss below the
    margin. None where no answer says anything: the reference had none right and a share of that is asked for.

    >>> round(score_statistic((43, 0, 1, 0), margin=0.096, scale="difference"), 2)  # an example of Tango's: 1.64 is 5 %
    1.65
    """
    if scale == "retention" and counts[0] + counts[2] == 0:
        return None
    n, values = sum(counts), Line.at(margin, scale).values
    mean = math.fsum(count * value for count, value in zip(counts, values, strict=True)) / n
    null = null_variance(counts, values)
    return mean * math.sqrt(n / null) if null > 0 else None


def loss_test(
    tasks: Sequence[Pairs],
    *,
    margin: float,
    scale: Scale,
    clusters: Sequence[Clusters] | None = None,
    weights: Sequence[float] | None = None,
) -> LossTest:
    """Tests the loss of one task or several against a margin on a scale.

    `clusters` has an entry a task: the cluster of every item, or None where items are independent. `weights` are the
    tasks', all alike by default; several tasks are one sum, Σ w x̄ against Σ w ȳ.

    >>> ten = Pairs((1.0,) * 10, (1.0,) * 10)  # T = sqrt(10 δ / (1 - δ)) for answers that never differ
    >>> round(loss_test([ten], margin=0.01, scale="retention").p_accept, 2)
    0.38
    """
    grouped = tuple(clusters) if clusters is not None else (None,) * len(tasks)
    chosen = tuple(weights) if weights is not None else (1.0,) * len(tasks)
    assert tasks
    assert len(grouped) == len(chosen) == len(tasks)
    assert min(chosen) > 0
    value, n = _loss(tasks, chosen, scale), sum(task.n for task in tasks)
    method, harm = _method(tasks, grouped, scale), _harm(tasks, grouped, chosen)
    if value is None:
        return LossTest(None, None, None, harm, method, n, "the reference scored nothing, so there is nothing to keep")
    parts = [_part(task, names, Line.at(margin, scale), len(tasks) == 1) for task, names in _each(tasks, grouped)]
    tails = _tails(parts, chosen)
    if isinstance(tails, str):
        return LossTest(value, None, None, harm, method, n, tails)
    return LossTest(value, tails[1], tails[0], harm, method, n)


def counted_loss_test(tasks: Sequence[Counts], *, margin: float, scale: Scale) -> LossTest:
    """Gives what `loss_test` gives for right-or-wrong items that are independent, from their counts alone.

    `Counts` are those of `score_statistic`. What a task adds is remembered, so that many thousands of nights of the
    same tasks can be simulated in seconds.
    """
    own, other = (math.fsum((task[0] + task[side]) / sum(task) for task in tasks) for side in (1, 2))
    won, lost = (sum(task[side] for task in tasks) for side in (1, 2))
    method, n = STRATIFIED if len(tasks) > 1 else TANG if scale == "retention" else TANGO, sum(map(sum, tasks))
    harm = _exact_harm(won, lost)
    if scale == "retention" and other <= ZERO:
        return LossTest(None, None, None, harm, method, n, "the reference scored nothing, so there is nothing to keep")
    value = 1 - own / other if scale == "retention" else (other - own) / len(tasks)
    line, alone = Line.at(margin, scale), len(tasks) == 1
    tails = _tails([_counted_part(task, line, alone) for task in tasks], [1.0] * len(tasks))
    if isinstance(tails, str):
        return LossTest(value, None, None, harm, method, n, tails)
    return LossTest(value, tails[1], tails[0], harm, method, n)


@lru_cache(maxsize=1 << 17)
def _counted_part(counts: Counts, line: Line, alone: bool) -> _Part:
    return _exact_part(Stratum.of_counts(counts), line, alone)


def more_items(tasks: Sequence[Pairs], *, margin: float, scale: Scale, alpha: float, power: float) -> MoreItems | None:
    """Gives how many more items of the same mix would settle the loss with that power, at a one-sided α.

    Towards acceptance where the loss seen is below the margin (a gain counts as a loss of 0: luck does not last),
    towards a breach where it is above; None where it is the margin, or nothing is known. α is that of the direction: a
    caller whose two differ asks again once it knows which.

    With σ0 the test's standard error and σ1 the items' own it takes n = ((z_α σ0 + z_β σ1) / μ)² items, with μ the mean
    of z (see `power.score_power`). The share of changed answers is the observed one, or, where fewer than FEW changed,
    the upper end of its 95 % interval of E. B. Wilson: a handful of changes may as well have been three times as many,
    and none at all would promise that nothing is needed.

    Known: items are taken as independent and tasks as weighing the same. Items in clusters need their design effect
    times as many.

    >>> half = Pairs((1.0,) * 475 + (0.0,) * 25 + (1.0,) * 25, (1.0,) * 500 + (0.0,) * 25)
    >>> more_items([half], margin=0.01, scale="difference", alpha=0.05, power=0.8).towards
    'accept'
    """
    value = _loss(tasks, [1.0] * len(tasks), scale)
    if value is None or abs(value - margin) <= ZERO or any(task.n < 2 and not task.is_binary for task in tasks):
        return None
    line, n = Line.at(margin, scale), sum(task.n for task in tasks)
    base = math.fsum(math.fsum(task.reference) / task.n for task in tasks) if scale == "retention" else len(tasks)
    mean = base * abs(margin - max(0.0, value))
    spreads = [_planned_variances(task, line, len(tasks) == 1) for task in tasks]
    assumed, own = (
        math.sqrt(math.fsum(spread[which] / task.n for spread, task in zip(spreads, tasks, strict=True)))
        for which in (0, 1)
    )
    normal = NormalDist()
    reach = normal.inv_cdf(1 - alpha) * assumed + normal.inv_cdf(power) * own
    return MoreItems(max(0, math.ceil(((reach / mean) ** 2 - 1) * n)), "accept" if value < margin else "breach")


def _planned_variances(task: Pairs, line: Line, alone: bool) -> tuple[float, float]:
    """Gives z's variance an item as the test will take it and as it is, with changes as many as there may well be."""
    changed = sum(own != other for own, other in zip(task.candidate, task.reference, strict=True))
    upper = changed if changed >= FEW else task.n * wilson_interval(changed, task.n).high
    if task.is_binary:
        both, won, lost, neither = task.counts
        alike = (task.n - upper) / (task.n - changed) if changed < task.n else 0.0
        extra = (upper - changed) / 2
        counts = (both * alike, won + extra, lost + extra, neither * alike)
        mean = math.fsum(c * v for c, v in zip(counts, line.values, strict=True)) / task.n
        seen = math.fsum(c * (v - mean) ** 2 for c, v in zip(counts, line.values, strict=True)) / task.n
        null = null_variance(counts, line.values)
        return (null if alone else max(null, seen)), seen
    z = [own - line.keep * other for own, other in zip(task.candidate, task.reference, strict=True)]
    squares = math.fsum((own - other) ** 2 for own, other in zip(task.candidate, task.reference, strict=True))
    # What a change is worth when it comes: as much as those seen, or all of the scale where none was.
    worst, best = ClusteredPairs.of(task).ends
    worth = squares / changed if changed else (best - worst) ** 2
    found = variance(z) + (upper - changed) / task.n * worth
    return found, found


def _each(tasks: Sequence[Pairs], clusters: Sequence[Clusters]) -> list[tuple[Pairs, Clusters]]:
    return list(zip(tasks, clusters, strict=True))


def _is_exact(task: Pairs, clusters: Clusters) -> bool:
    return task.is_binary and clusters is None


def _loss(tasks: Sequence[Pairs], weights: Sequence[float], scale: Scale) -> float | None:
    own, other = (
        math.fsum(w * math.fsum(side) / task.n for w, task, side in zip(weights, tasks, sides, strict=True))
        for sides in ([task.candidate for task in tasks], [task.reference for task in tasks])
    )
    if scale == "difference":
        return (other - own) / math.fsum(weights)
    return 1 - own / other if other > ZERO else None


def _part(task: Pairs, clusters: Clusters, line: Line, alone: bool) -> _Part | str:
    """Gives a task's share of the sum, or why there is none."""
    if _is_exact(task, clusters):
        return _exact_part(Stratum.of(task), line, alone)
    sums = ClusteredPairs.of(task, clusters)
    if sums.count < 2:
        return f"a single {'item' if clusters is None else 'cluster'} tells nothing about the spread"
    spread = sums.cautious_variance(1.0, line.keep, shift=line.shift)
    return _Part(sums.means[0] - line.keep * sums.means[1] + line.shift, spread, sums.count - 1)


def _exact_part(stratum: Stratum, line: Line, alone: bool) -> _Part:
    phi = math.atan(line.keep)
    assert stratum.counts is not None
    null = null_variance(stratum.counts, line.values)
    seen = stratum.sample_variance(phi) / math.cos(phi) ** 2
    mean = stratum.means[0] - line.keep * stratum.means[1] + line.shift
    # In a sum the hypothesis says nothing of one task alone, so either variance may be the right one.
    return _Part(mean, (null if alone else max(null, seen)) / stratum.n, None)


def _tails(parts: Sequence[_Part | str], weights: Sequence[float]) -> tuple[float, float] | str:
    """Gives the chances of a sum no larger and of one no smaller than seen, were it zero; or why there are none.

    Degrees of freedom are those of F. E. Satterthwaite (Biometrics Bulletin 2, 1946, 110-114).
    """
    from scipy.special import stdtr

    known = [part for part in parts if isinstance(part, _Part)]
    if len(known) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    weighted = [(w * w * part.variance, part.degrees) for w, part in zip(weights, known, strict=True)]
    total = math.fsum(share for share, _ in weighted)
    if total <= ZERO * ZERO:
        return "the items have no spread to go by"
    ahead = math.fsum(w * part.mean for w, part in zip(weights, known, strict=True)) / math.sqrt(total)
    lost = math.fsum(share * share / degrees for share, degrees in weighted if degrees is not None)
    if lost == 0:
        normal = NormalDist()
        return normal.cdf(ahead), normal.cdf(-ahead)
    degrees = total * total / lost
    return float(stdtr(degrees, ahead)), float(stdtr(degrees, -ahead))


def _harm(tasks: Sequence[Pairs], clusters: Sequence[Clusters], weights: Sequence[float]) -> float | None:
    """Exact and one-sided from changed answers where all are right or wrong and independent, else the test at 0."""
    if all(_is_exact(task, names) for task, names in _each(tasks, clusters)):
        won, lost = (sum(task.counts[kind] for task in tasks) for kind in (1, 2))
        return _exact_harm(won, lost)
    if all(task.candidate == task.reference for task in tasks):
        return 1.0  # no changed answer is no evidence
    parts = [_part(task, names, Line.at(0.0, "difference"), len(tasks) == 1) for task, names in _each(tasks, clusters)]
    found = _tails(parts, weights)
    return None if isinstance(found, str) else found[0]


def _exact_harm(won: int, lost: int) -> float:
    from scipy.special import bdtr

    return float(bdtr(won, won + lost, 0.5)) if won + lost else 1.0


def _method(tasks: Sequence[Pairs], clusters: Sequence[Clusters], scale: Scale) -> str:
    if len(tasks) > 1:
        return STRATIFIED
    kept = scale == "retention"
    if _is_exact(tasks[0], clusters[0]):
        return TANG if kept else TANGO
    if clusters[0] is None:
        return FIELLER if kept else PAIRED_T
    return CLUSTER_FIELLER if kept else CLUSTER_T
