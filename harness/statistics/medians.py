"""A median with an interval that assumes nothing about the distribution.

Each of n independent values lies below the true median with probability one half, so the k-th smallest and the k-th
largest enclose it with a probability that is a binomial sum. With five values the smallest and the largest do so with
93.75 %; with fewer than that no useful interval exists.

Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

N_MIN = 5


@dataclass(frozen=True)
class Enclosure:
    """Two order statistics and the probability with which they enclose the median."""

    low: float
    high: float
    level: float


def median_interval(values: Sequence[float], *, level: float = 0.95) -> Enclosure | None:
    """Gives the narrowest symmetric enclosure of at least `level`, or the widest there is where none reaches it.

    Its own `level` says what it does reach. None for fewer than five values.

    >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
    Enclosure(low=1.0, high=5.0, level=0.9375)
    """
    count = len(values)
    if count < N_MIN:
        return None
    ordered = sorted(values)
    reached = {k: enclosing_probability(count, k) for k in range(1, (count + 1) // 2 + 1)}
    k = max((k for k, probability in reached.items() if probability >= level), default=1)
    return Enclosure(ordered[k - 1], ordered[count - k], reached[k])


def enclosing_probability(count: int, k: int) -> float:
    """Gives the probability that the k-th smallest and k-th largest of `count` values enclose the median."""
    return 1.0 - 2 * sum(math.comb(count, below) for below in range(k)) / float(2**count)
