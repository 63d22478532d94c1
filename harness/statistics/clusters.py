"""Means when the unit that was sampled is a cluster: tokens of a window of text, questions on one passage.

Tokens of one window share their topic, so treating them as independent gives intervals that are too short. A mean per
token is a ratio of two sums over windows, sum(y) / sum(n); its standard error follows from the windows' residuals y -
R n, by linearization (W. G. Cochran, Sampling Techniques, 3rd ed., 1977, section 6.5 equation 6.13, without the finite
population correction), and its interval uses Student's t with one degree of freedom fewer than there are windows.

Pairs of answers take the same road: a linear form z = candidate - θ reference is summed within clusters, and the spread
of those sums is what counts. Its variance carries the factor G / (G - 1) known as CR1, with Student's t of G - 1
degrees (A. C. Cameron and D. L. Miller, Journal of Human Resources 50, 2015, 317-372, sections II and VI).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.record import Interval
from harness.statistics.contrasts import Pairs, null_variance
from harness.statistics.intervals import student_quantile
from harness.statistics.paired import NEXT, ZERO, Estimate

if TYPE_CHECKING:
    import numpy.typing as npt

CLUSTER_FIELLER, CLUSTER_T = "fieller-cr1-t", "paired-cr1-t"
UNBOUNDED = "the reference scored too little for a ratio to have bounds"


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


@dataclass(frozen=True)
class ClusteredPairs:
    """Pairs of answers with the cluster of each; N items, G clusters.

    The spread of clusters knows nothing of answers that differ nowhere yet: ten items alike would prove that all are.
    So where most answers are unchanged, and for items that are right or wrong, the variance a test may use is never
    below the one most likely if the mean were zero (`contrasts.null_variance`, with the best and the worst answer of
    the scale among those that may come), enlarged by the clusters' design effect. The scale is from 0 to 1, or as far
    as any score reaches beyond. Where most scores moved a little the spread speaks for itself.
    """

    own_N: npt.NDArray[np.float64]
    other_N: npt.NDArray[np.float64]
    cluster_N: npt.NDArray[np.intp]

    @classmethod
    def of(cls, pairs: Pairs, clusters: Sequence[str] | None = None) -> ClusteredPairs:
        """Takes pairs with the names of their clusters; without names every item is a cluster of its own."""
        own_N, other_N = np.asarray(pairs.candidate, float), np.asarray(pairs.reference, float)
        if clusters is None:
            return cls(own_N, other_N, np.arange(pairs.n))
        assert len(clusters) == pairs.n, f"{len(clusters)} clusters for {pairs.n} items"
        return cls(own_N, other_N, np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)[1])

    @property
    def n(self) -> int:
        """The number of items."""
        return int(self.own_N.size)

    @property
    def count(self) -> int:
        """The number of clusters."""
        return int(self.cluster_N.max()) + 1

    @property
    def means(self) -> tuple[float, float]:
        """Means over items of the candidate and of the reference."""
        return math.fsum(self.own_N) / self.n, math.fsum(self.other_N) / self.n

    @property
    def is_sparse(self) -> bool:
        """True when few changes carry the spread: scores that are mostly unchanged, or only 0 or 1."""
        sides = (self.own_N, self.other_N)
        return bool(all(np.isin(side, (0, 1)).all() for side in sides) or (self.own_N == self.other_N).mean() >= 0.5)

    @property
    def ends(self) -> tuple[float, float]:
        """The worst and the best score there may be: 0 and 1, or those seen that are beyond."""
        return (
            min(0.0, float(self.own_N.min()), float(self.other_N.min())),
            max(1.0, float(self.own_N.max()), float(self.other_N.max())),
        )

    def covariance(self, one_N: npt.NDArray[np.float64], two_N: npt.NDArray[np.float64]) -> float:
        """Gives the CR1 covariance of two means over items; of at least two clusters."""
        one_G, two_G = (np.bincount(self.cluster_N, weights=side - side.mean()) for side in (one_N, two_N))
        return self.count / (self.count - 1) * math.fsum(one_G * two_G) / self.n**2

    def variance(self, own: float, other: float) -> float:
        """Gives the CR1 variance of the mean of own * candidate - other * reference; of at least two clusters."""
        z_N = own * self.own_N - other * self.other_N
        return self.covariance(z_N, z_N)

    def cautious_variance(self, own: float, other: float, *, shift: float = 0.0) -> float:
        """Gives the variance to test whether the mean of own * candidate - other * reference + shift is zero."""
        seen = self.variance(own, other)
        if not self.is_sparse:
            return seen
        z_N = own * self.own_N - other * self.other_N + shift
        values, counts = np.unique(z_N, return_counts=True)
        # The best and the worst answer there could have been, unseen as they may be.
        worst, best = self.ends
        kinds = [*values.tolist(), own * best - other * worst + shift, own * worst - other * best + shift]
        null = null_variance([*counts.tolist(), 0, 0], kinds)
        return max(seen, null / self.n * self._design_effect(seen, float(z_N.var(ddof=1)) / self.n))

    def _design_effect(self, seen: float, independent: float) -> float:
        """How many times larger a variance is for the clusters (L. Kish, Survey Sampling, 1965, section 5.4).

        Where no answer differs nothing tells how differing ones would cluster, and a cluster counts as one item.
        """
        if independent == 0 or not (self.own_N != self.other_N).any():
            return float((np.bincount(self.cluster_N).astype(float) ** 2).sum()) / self.n
        return max(1.0, seen / independent)


def clustered_retention(pairs: Pairs, clusters: Sequence[str], *, level: float = 0.95) -> Estimate:
    """Gives Σ candidate / Σ reference with E. C. Fieller's interval from the spread of clusters.

    Those θ belong to it whose mean z = x̄ - θ ȳ is within t standard errors of zero: a quadratic in θ, and beyond its
    roots whatever the cautious variance does not rule out either.
    """
    sums = ClusteredPairs.of(pairs, clusters)
    own, other = sums.means
    if other <= ZERO:
        return Estimate(None, None, pairs.n, "the reference scored nothing, so there is nothing to keep")
    value = own / other
    if reason := _unknown_spread(sums, value):
        return Estimate(value, None, pairs.n, reason)
    t = student_quantile(level, degrees=sums.count - 1)
    ends = _fieller(sums, t)
    if ends is None:
        return Estimate(value, None, pairs.n, UNBOUNDED)

    def excess(phi: float) -> float:
        cos, sin = math.cos(phi), math.sin(phi)
        return abs(cos * own - sin * other) - t * math.sqrt(sums.cautious_variance(cos, sin))

    low = _outwards(excess, math.atan(max(0.0, ends[0])), 0.0)
    high = _outwards(excess, math.atan(ends[1]), math.pi / 2)
    if high is None:
        return Estimate(value, None, pairs.n, UNBOUNDED)
    interval = Interval(low=math.tan(low or 0.0), high=math.tan(high), level=level, method=CLUSTER_FIELLER)
    return Estimate(value, interval, pairs.n)


def clustered_difference(pairs: Pairs, clusters: Sequence[str], *, level: float = 0.95) -> Estimate:
    """Gives the mean of candidate - reference with the t interval from the spread of clusters.

    As for retention, whatever the cautious variance does not rule out belongs to it too.
    """
    sums = ClusteredPairs.of(pairs, clusters)
    value = sums.means[0] - sums.means[1]
    if reason := _unknown_spread(sums, 1.0):
        return Estimate(value, None, pairs.n, reason)
    t = student_quantile(level, degrees=sums.count - 1)
    reach = t * math.sqrt(sums.variance(1.0, 1.0))

    def excess(shift: float) -> float:
        return abs(value - shift) - t * math.sqrt(sums.cautious_variance(1.0, 1.0, shift=-shift))

    low, high = value - reach, value + reach
    if sums.is_sparse:
        # A difference of such scores cannot leave the scale, so an end that nothing rules out is the end of the scale.
        most = sums.ends[1] - sums.ends[0]
        below, above = _outwards(excess, max(-most, low), -most), _outwards(excess, min(most, high), most)
        low, high = -most if below is None else below, most if above is None else above
    return Estimate(value, Interval(low=low, high=high, level=level, method=CLUSTER_T), pairs.n)


def _unknown_spread(sums: ClusteredPairs, ratio: float) -> str:
    """Says why nothing is known of the spread of candidate - ratio * reference, or nothing."""
    if sums.count < 2:
        return "a single cluster tells nothing about the spread"
    if not sums.is_sparse and sums.variance(1.0, ratio) <= ZERO * ZERO:
        return "the clusters have no spread to go by"
    return ""


def _fieller(sums: ClusteredPairs, t: float) -> tuple[float, float] | None:
    """Gives the roots of (ȳ² - t² V_yy) θ² - 2 (x̄ ȳ - t² V_xy) θ + (x̄² - t² V_xx), or None when they bound nothing."""
    (own, other), squared = sums.means, t * t
    square = other * other - squared * sums.variance(0.0, 1.0)
    if square <= 0:
        return None
    linear = own * other - squared * sums.covariance(sums.own_N, sums.other_N)
    constant = own * own - squared * sums.variance(1.0, 0.0)
    root = math.sqrt(max(0.0, linear * linear - square * constant))
    return (linear - root) / square, (linear + root) / square


def _outwards(excess: Callable[[float], float], inner: float, outer: float) -> float | None:
    """Gives where a test starts to reject on the way out from `inner`, or None when it never does."""
    from scipy.optimize import brentq

    if inner == outer or excess(outer) <= 0:
        return None
    beside = inner + NEXT * (outer - inner)
    return inner if excess(beside) >= 0 else float(brentq(excess, beside, outer, xtol=1e-13))
