"""Quantiles with intervals that assume nothing about the distribution, and none where the tail was not seen.

Each of n independent values lies at or below the true q-quantile with probability q, so the number that do is binomial,
and two order statistics enclose the quantile with a probability that is a binomial sum. Of 100 latencies not even the
largest can be trusted to be as large as the 99th percentile: with probability 0.99^100 = 37 % all are smaller. Below
the least count that can say something there is no interval, and an upper tail has no quantile at all.

Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

N_MIN = 5
"""The fewest values whose median gets an enclosure: the smallest and the largest of five reach 93.75 %."""


@dataclass(frozen=True)
class Enclosure:
    """Two order statistics and the probability with which they enclose the quantile."""

    low: float
    high: float
    level: float


def quantile_interval(values: Sequence[float], q: float, *, level: float = 0.95) -> Enclosure | None:
    """Gives the narrowest two order statistics of which each is on the wrong side with at most (1 - level) / 2.

    Its own `level` says what the two reach, which is at least what was asked for. None where there are fewer than
    `quantile_n_min(q, level=level)` values: the largest or the smallest of them is then no bound.

    >>> quantile_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.5)
    Enclosure(low=1.0, high=6.0, level=0.96875)
    """
    assert 0 < level < 1
    count = len(values)
    if count < quantile_n_min(q, level=level):
        return None
    ordered = sorted(values)
    below_K = _at_most(count, q)
    # The k-th smallest is above the quantile when fewer than k values are at or below it: P(B <= k - 1).
    low = int(np.searchsorted(below_K, (1 - level) / 2, side="right"))
    high = _first_high(count, q, (1 - level) / 2)
    return Enclosure(ordered[low - 1], ordered[high - 1], enclosing_probability(count, (low, high), q=q))


def _first_high(count: int, q: float, tail: float) -> int:
    """Gives the least k whose k-th smallest is below the quantile with at most `tail`: P(B >= k), seen from above."""
    above_K = _at_most(count, 1 - q)
    return count + 1 - int(np.searchsorted(above_K, tail, side="right"))


def _at_most(count: int, q: float) -> npt.NDArray[np.float64]:
    """Gives P(B <= k) for k = 0 ... count - 1 of a binomial B."""
    from scipy.special import bdtr

    return np.asarray(bdtr(np.arange(count, dtype=np.float64), count, q), dtype=np.float64)


def median_interval(values: Sequence[float], *, level: float = 0.95) -> Enclosure | None:
    """Gives the narrowest symmetric enclosure of at least `level`, or the widest there is where none reaches it.

    Its own `level` says what it does reach. None for fewer than five values.

    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
    Enclosure(low=1.0, high=5.0, level=0.9375)
    """
    count = len(values)
    if count < N_MIN:
        return None
    widest = Enclosure(min(values), max(values), enclosing_probability(count, (1, count)))
    return quantile_interval(values, 0.5, level=level) or widest


def enclosing_probability(count: int, ranks: tuple[int, int], *, q: float = 0.5) -> float:
    """Gives the probability that the order statistics of these ranks (from 1) enclose the q-quantile."""
    from scipy.special import bdtr, bdtrc

    low, high = ranks
    assert 1 <= low < high <= count, f"ranks {ranks} of {count}"
    return float(1.0 - bdtr(low - 1, count, q) - bdtrc(high - 1, count, q))


def quantile_n_min(q: float, *, level: float = 0.95) -> int:
    """Gives the fewest values that have a distribution-free two-sided interval of their quantile `q`.

    All n values lie below an upper quantile with
    probability q^n, so n is the least with q^n <= (1 - level) / 2; for a lower quantile 1 - q takes the place of q.

    >>> [quantile_n_min(q) for q in (0.9, 0.95, 0.99, 0.999)]
    [36, 72, 368, 3688]
    """
    assert 0 < q < 1, f"quantile {q}"
    return math.ceil(math.log((1 - level) / 2) / math.log(max(q, 1 - q)))


def tail_quantile(values: npt.ArrayLike, q: float) -> float | None:
    """Gives an upper quantile (type 7, linear), or None when there are too few values to have seen that tail."""
    array = np.asarray(values, dtype=np.float64)
    return None if array.size < quantile_n_min(q) else float(np.quantile(array, q))
