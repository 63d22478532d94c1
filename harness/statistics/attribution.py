"""What each stage of a pipeline did, on the very same items: effects, interactions and gaps closed.

All of these are linear forms of several models' answers to one item. An effect is z = after - before; an interaction is
z = both - first - second + neither, what two stages do together beyond the sum of what each does alone; a student
closes the share θ of the gap from a floor to its teacher when z = (student - floor) - θ (teacher - floor) has mean
zero. A suite's number is the mean over tasks of the tasks' means, tasks being independent strata whose variances add
(W. G. Cochran, Sampling Techniques, 3rd ed., 1977, section 5.3), with the degrees of freedom of F. E. Satterthwaite
(Biometrics Bulletin 2, 1946, 110-114). Scores take Student's t, or E. C. Fieller's interval for a ratio (JRSS B 16,
1954, 175-185). Right-or-wrong items take the variance most likely under the hypothesis, as `contrasts` explains: an
effect on one task then has T. Tango's interval, and "no item changed" is no proof that none ever would.

Known: items are taken as independent. Items that share a passage are not, and the interval is then too narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from harness.record import Interval
from harness.statistics.contrasts import null_variance
from harness.statistics.intervals import normal_quantile, student_quantile
from harness.statistics.paired import FIELLER, NEXT, PAIRED_T, SCORE, STRATIFIED, ZERO, Estimate

NO_SPREAD = "the items have no spread to go by"
CERTAIN = 1e-6
"""A ratio's interval narrower than this is the rounding of scores that are all in the same proportion."""
STRATIFIED_T, STRATIFIED_FIELLER = "stratified-t", "stratified-fieller-t"


@dataclass(frozen=True)
class Table:
    """One task's items as several models answered them: `columns[c][i]` is what model c scored on item i.

    `continuous` says that values are no right or wrong answers even where all happen to be 0 or 1.
    """

    columns: tuple[tuple[float, ...], ...]
    continuous: bool = False

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns}
        assert len(lengths) == 1, f"columns of {sorted(lengths)} items"
        assert self.n, "a table without items"

    @property
    def n(self) -> int:
        """The number of items."""
        return len(self.columns[0])


def effect(tasks: Sequence[Table], *, level: float = 0.95) -> Estimate:
    """Gives the mean of after - before; columns are (before, after).

    >>> found = effect([Table(((1.0,) * 90 + (0.0,) * 10, (1.0,) * 90 + (0.0,) * 10))])
    >>> found.value, round(found.interval.high, 4)  # z² / (n + z²), although no item changed
    (0.0, 0.037)
    """
    return _mean([_Stratum.of(task) for task in tasks], (-1.0, 1.0), level)


def interaction(tasks: Sequence[Table], *, level: float = 0.95) -> Estimate:
    """Gives the mean of both - first - second + neither; columns are (neither, first, second, both).

    Zero means that the two stages' effects add up; negative that together they lose more than their sum.
    """
    return _mean([_Stratum.of(task) for task in tasks], (1.0, -1.0, -1.0, 1.0), level)


def gap_closed(tasks: Sequence[Table], *, level: float = 0.95) -> Estimate:
    """Gives (student - floor) / (teacher - floor); columns are (floor, student, teacher), higher is better.

    Absent where the teacher is not significantly better than the floor: a share of something that may be zero has no
    bounds.
    """
    strata = [_Stratum.of(task) for task in tasks]
    gap = _mean(strata, (-1.0, 0.0, 1.0), level)
    assert gap.value is not None
    if gap.value <= ZERO:
        return Estimate(None, None, gap.n, "the teacher is not better than the floor")
    if gap.interval is None or gap.interval.low <= 0:
        ends = f", interval [{gap.interval.low:.3g}, {gap.interval.high:.3g}]" if gap.interval else ""
        told = gap.reason or f"it is {gap.value:.3g}{ends}"
        return Estimate(None, None, gap.n, f"the gap from floor to teacher may be zero: {told}")

    def excess(phi: float) -> float:
        cos, sin = math.cos(phi), math.sin(phi)
        return _excess(strata, (sin - cos, cos, -sin), 0.0, level)

    value = _weighted(strata, (-1.0, 1.0, 0.0)) / gap.value
    centre = math.atan(value)
    low, high = (math.tan(_edge(excess, centre, end)) for end in (-math.pi / 2, math.pi / 2))
    if high - low <= CERTAIN * max(1.0, abs(value)):
        return Estimate(value, None, gap.n, NO_SPREAD)
    method = _method(strata, single=FIELLER, several=STRATIFIED_FIELLER)
    return Estimate(value, Interval(low=low, high=high, level=level, method=method), gap.n)


@dataclass(frozen=True)
class _Stratum:
    """A task summed up: means and covariances of its models and, of right-or-wrong items, each pattern's count."""

    n: int
    means: tuple[float, ...]
    covariances: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...] | None

    @classmethod
    def of(cls, table: Table) -> _Stratum:
        means = tuple(math.fsum(column) / table.n for column in table.columns)
        away = [[x - mean for x in column] for column, mean in zip(table.columns, means, strict=True)]
        degrees = max(1, table.n - 1)
        covariances = tuple(
            tuple(math.fsum(x * y for x, y in zip(one, other, strict=True)) / degrees for other in away) for one in away
        )
        is_binary = not table.continuous and all(set(column) <= {0.0, 1.0} for column in table.columns)
        seen = Counter(zip(*table.columns, strict=True))
        counts = tuple(seen[pattern] for pattern in _patterns(len(means))) if is_binary else None
        return cls(table.n, means, covariances, counts)

    def mean(self, weights: Sequence[float]) -> float:
        """Gives the mean of z = Σ weight x score."""
        return math.fsum(w * mean for w, mean in zip(weights, self.means, strict=True))

    def variance(self, weights: Sequence[float]) -> float:
        """Gives the variance of z as seen."""
        rows = zip(weights, self.covariances, strict=True)
        return max(0.0, math.fsum(w * v * c for w, row in rows for v, c in zip(weights, row, strict=True)))

    def null_variance(self, weights: Sequence[float], shift: float) -> float:
        """Gives the variance that z would most likely have if its mean were `shift`; right-or-wrong items only."""
        assert self.counts is not None
        grouped: Counter[float] = Counter()
        for pattern, count in zip(_patterns(len(weights)), self.counts, strict=True):
            grouped[math.fsum(w * score for w, score in zip(weights, pattern, strict=True)) - shift] += count
        return null_variance(list(grouped.values()), list(grouped))


def _patterns(models: int) -> tuple[tuple[int, ...], ...]:
    return tuple(product((0, 1), repeat=models))


def _weighted(strata: Sequence[_Stratum], weights: Sequence[float]) -> float:
    return math.fsum(stratum.mean(weights) for stratum in strata) / len(strata)


def _excess(strata: Sequence[_Stratum], weights: Sequence[float], shift: float, level: float) -> float:
    """Gives how far the mean of z is from `shift` beyond what chance explains; positive when `shift` is ruled out."""
    parts = [_variance(s, weights, shift, alone=len(strata) == 1) / s.n / len(strata) ** 2 for s in strata]
    lost = math.fsum(p * p / (s.n - 1) for p, s in zip(parts, strata, strict=True) if s.counts is None)
    total = math.fsum(parts)
    quantile = student_quantile(level, degrees=total**2 / lost) if lost > 0 else normal_quantile(level)
    return abs(_weighted(strata, weights) - shift) - quantile * math.sqrt(total)


def _variance(stratum: _Stratum, weights: Sequence[float], shift: float, *, alone: bool) -> float:
    if stratum.counts is None:
        return stratum.variance(weights)
    null = stratum.null_variance(weights, shift)
    # Of several tasks the hypothesis speaks of the mean only, and each may be away from it: the larger variance counts.
    return null if alone else max(null, stratum.variance(weights))


def _mean(strata: Sequence[_Stratum], weights: Sequence[float], level: float) -> Estimate:
    """Gives the mean of z over items and tasks; its interval holds every shift that the items do not rule out."""
    value, n = _weighted(strata, weights), sum(stratum.n for stratum in strata)
    if any(stratum.counts is None and stratum.n < 2 for stratum in strata):
        return Estimate(value, None, n, "a single item tells nothing about the spread")

    def excess(shift: float) -> float:
        return _excess(strata, weights, shift, level)

    if all(stratum.counts is None for stratum in strata):
        reach = -excess(value)  # without right-or-wrong items the spread is the same wherever one looks
        low, high = value - reach, value + reach
    else:
        ends = math.fsum(min(w, 0.0) for w in weights), math.fsum(max(w, 0.0) for w in weights)
        low, high = (_edge(excess, value, end) for end in ends)
    if high - low <= ZERO:
        return Estimate(value, None, n, NO_SPREAD)
    method = _method(strata, single=PAIRED_T, several=STRATIFIED_T)
    return Estimate(value, Interval(low=low, high=high, level=level, method=method), n)


def _edge(excess: Callable[[float], float], centre: float, end: float) -> float:
    """Gives where the test starts to reject on the way from `centre` to `end`, or `end` when it never does."""
    from scipy.optimize import brentq

    if centre == end or excess(end) <= 0:
        return end
    # Where no answer differs, mean and variance are both zero at the estimate itself, and negative right beside it.
    beside = centre + NEXT * (end - centre)
    if excess(beside) >= 0:
        return centre
    return float(brentq(excess, beside, end, xtol=1e-13))


def _method(strata: Sequence[_Stratum], *, single: str, several: str) -> str:
    if any(stratum.counts is not None for stratum in strata):
        return SCORE if len(strata) == 1 else STRATIFIED
    return single if len(strata) == 1 else several
