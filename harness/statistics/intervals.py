"""Confidence interval of a mean, by a method that suits the data.

The textbook interval (mean ± 1.96 standard errors) fails where evaluations live: with every item right it has width
zero, and with few items or scores near 0 or 1 it covers far less than it says. Shares of right answers get the score
interval of E. B. Wilson (JASA 22, 1927, 209-212), which inverts the test of a share instead of trusting the estimated
spread. Other numbers get Student's t (1908). Both take items as independent draws: items that share a passage are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from harness.record import Interval

WILSON = "wilson"
STUDENT = "student-t"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Gives the two-sided interval of the mean: Wilson's when every value is 0 or 1, Student's t otherwise.

    None for fewer than two values, and for equal values that are not 0 or 1: no spread among a few draws is no proof of
    certainty, and an interval of width zero would claim one. Raises ValueError for values that are not finite.

    >>> interval = mean_interval([1.0] * 10)  # ten right of ten: 10 / (10 + 1.96^2) is the lower end
    >>> round(interval.low, 4), interval.high, interval.method
    (0.7225, 1.0, 'wilson')
    """
    assert 0 < level < 1
    if not all(math.isfinite(value) for value in values):
        raise ValueError("the mean of values that are not finite has no interval")
    if len(values) < 2:
        return None
    if all(value in (0, 1) for value in values):
        return wilson_interval(round(math.fsum(values)), len(values), level=level)
    return _student_interval(values, level)


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Gives the score interval of a share: the p with |successes - n p| <= z sqrt(n p (1 - p)), a quadratic in p."""
    assert 0 <= successes <= n
    z = normal_quantile(level)
    centre = (successes + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    # At the ends of the scale the quadratic's root is exactly 0 or 1; rounding would put it a hair beside.
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == n else centre + reach
    return Interval(low=low, high=high, level=level, method=WILSON)


def _student_interval(values: Sequence[float], level: float) -> Interval | None:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    if min(values) == max(values):
        return None
    reach = student_quantile(level, degrees=n - 1) * math.sqrt(variance / n)
    return Interval(low=mean - reach, high=mean + reach, level=level, method=STUDENT)


def normal_quantile(level: float) -> float:
    """Gives z with P(|Z| <= z) = level.

    >>> round(normal_quantile(0.95), 6)
    1.959964
    """
    return NormalDist().inv_cdf(0.5 + level / 2)


def student_quantile(level: float, *, degrees: float) -> float:
    """Gives t with P(|T| <= t) = level; degrees of freedom need not be whole.

    >>> round(student_quantile(0.95, degrees=10), 3)  # any printed table
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))
