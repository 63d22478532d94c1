"""Means over tokens when the unit that was sampled is a window of text.

Tokens of one window share their topic, so treating them as independent gives intervals that are too short. A mean per
token is a ratio of two sums over windows, sum(y) / sum(n); its standard error follows from the windows' residuals y -
R n, by linearization (W. G. Cochran, Sampling Techniques, 3rd ed., 1977, section 6.5 equation 6.13, without the finite
population correction), and its interval uses Student's t with one degree of freedom fewer than there are windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.statistics.intervals import student_quantile

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class RatioOfSums:
    """A ratio of sums over G clusters; `standard_error` is None where the clusters cannot tell one."""

    value: float
    standard_error: float | None
    clusters: int

    def interval(self, *, level: float = 0.95) -> tuple[float, float] | None:
        """Gives the t interval, or None for one cluster or for clusters without any spread.

        No spread among a few clusters is no proof of certainty: a zero-width interval would claim one.
        """
        if self.standard_error is None:
            return None
        reach = student_quantile(level, degrees=self.clusters - 1) * self.standard_error
        return self.value - reach, self.value + reach


def ratio_of_sums(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> RatioOfSums:
    """Gives sum(numerators) / sum(denominators) with its cluster-robust standard error; one entry a cluster."""
    y_G, n_G = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    assert y_G.shape == n_G.shape, f"{y_G.shape} numerators, {n_G.shape} denominators"
    assert y_G.size
    count, total = y_G.size, math.fsum(n_G)
    value = math.fsum(y_G) / total
    if count < 2:
        return RatioOfSums(value, None, count)
    squares = math.fsum((y_G - value * n_G) ** 2)
    error = math.sqrt(count / (count - 1) * squares) / total
    return RatioOfSums(value, error or None, count)
