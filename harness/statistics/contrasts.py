"""How far a linear form of paired answers is from zero, in standard errors.

Whether a candidate keeps a share θ of its reference is a question about one number an item: z = candidate - θ reference
has mean zero exactly when it does. The score test asks it with the variance that z would have *if its mean were zero*,
which stays honest where the plug-in variance does not: no item changed of a hundred has a sample variance of zero, and
yet does not prove that none of ten thousand would. For right-or-wrong items that variance is exact: of all ways to draw
items whose mean z is zero it takes the most likely one. For θ alone this is the test of N.-S. Tang, M.-L. Tang and I.
S. F. Chan (Statistics in Medicine 22, 2003, 1217-1233), for a difference that of T. Tango (Statistics in Medicine 17,
1998, 891-908); both papers solve the constrained likelihood in closed form, here one root of one function serves all.

A ratio is kept as an angle, θ = tan φ, so that "no bound" is an ordinary point (φ = π/2) and not an infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.statistics.intervals import normal_quantile, student_quantile

SIDES = ((1, 1), (1, 0), (0, 1), (0, 0))
"""The four answers to a right-or-wrong item: (candidate, reference)."""


@dataclass(frozen=True)
class Pairs:
    """The same items answered twice: item i has `candidate[i]` and `reference[i]`, on one scale.

    `chance` is what guessing would score on these items, where that is known.
    """

    candidate: tuple[float, ...]
    reference: tuple[float, ...]
    chance: float | None = None

    def __post_init__(self) -> None:
        assert len(self.candidate) == len(self.reference), f"{len(self.candidate)} answers for {len(self.reference)}"
        assert self.candidate

    @property
    def n(self) -> int:
        """The number of items."""
        return len(self.candidate)

    @property
    def is_binary(self) -> bool:
        """True when every answer is 0 or 1."""
        return set(self.candidate) | set(self.reference) <= {0.0, 1.0}

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Both right, only the candidate, only the reference, neither; of binary items."""
        assert self.is_binary
        seen = list(zip(self.candidate, self.reference, strict=True))
        both, candidate, reference, neither = (seen.count(side) for side in SIDES)
        return both, candidate, reference, neither


@dataclass(frozen=True)
class Stratum:
    """What a score test needs of some pairs: means, covariances and, for binary items, the four counts.

    Both means are taken from `origin`: 0, or what guessing would give.
    """

    n: int
    origin: float
    means: tuple[float, float]
    covariances: tuple[float, float, float]
    counts: tuple[int, int, int, int] | None

    @classmethod
    def of(cls, pairs: Pairs, *, origin: float = 0.0) -> Stratum:
        """Summarizes pairs; covariances are (candidate, reference, both) and 0 for a single item."""
        own, other = math.fsum(pairs.candidate) / pairs.n, math.fsum(pairs.reference) / pairs.n
        away = [(x - own, y - other) for x, y in zip(pairs.candidate, pairs.reference, strict=True)]
        degrees = max(1, pairs.n - 1)
        covariances = (
            math.fsum(x * x for x, _ in away) / degrees,
            math.fsum(y * y for _, y in away) / degrees,
            math.fsum(x * y for x, y in away) / degrees,
        )
        means = (own - origin, other - origin)
        return cls(pairs.n, origin, means, covariances, pairs.counts if pairs.is_binary else None)

    @classmethod
    def of_counts(cls, counts: tuple[int, int, int, int]) -> Stratum:
        """Gives what `of` gives for right-or-wrong items with these counts, without going through the items."""
        n = sum(counts)
        own, other = (counts[0] + counts[1]) / n, (counts[0] + counts[2]) / n
        scale = n / max(1, n - 1)
        covariances = (scale * own * (1 - own), scale * other * (1 - other), scale * (counts[0] / n - own * other))
        return cls(n, 0.0, (own, other), covariances, counts)

    def mean(self, phi: float) -> float:
        """Gives the mean of z = cos φ (candidate - origin) - sin φ (reference - origin)."""
        return math.cos(phi) * self.means[0] - math.sin(phi) * self.means[1]

    def sample_variance(self, phi: float) -> float:
        """Gives the variance of z as seen."""
        cos, sin = math.cos(phi), math.sin(phi)
        own, other, both = self.covariances
        return max(0.0, cos * cos * own + sin * sin * other - 2 * cos * sin * both)

    def null_variance(self, phi: float) -> float:
        """Gives the variance that z would most likely have if its mean were zero; binary items only."""
        assert self.counts is not None
        cos, sin = math.cos(phi), math.sin(phi)
        values = [cos * (own - self.origin) - sin * (other - self.origin) for own, other in SIDES]
        return null_variance(self.counts, values)


def null_variance(counts: Sequence[float], values: Sequence[float]) -> float:
    """Gives the variance of a score that takes `values[j]` in the j-th kind, most likely given that its mean is zero.

    Of all probabilities p with Σ p v = 0 the likelihood Π p^counts is greatest at p = counts / (n (1 + λ v)) for the
    λ that makes the mean zero (a Lagrange multiplier; A. B. Owen, Biometrika 75, 1988, 237-249). Where no such λ leaves
    every probability in [0, 1], an unseen kind at the end of the scale takes the remaining mass.
    """
    n, low, high = sum(counts), min(values), max(values)
    if low >= 0 or high <= 0:
        return 0.0
    at = {end: sum(count for count, value in zip(counts, values, strict=True) if value == end) for end in (low, high)}
    seen = [(count / n, value) for count, value in zip(counts, values, strict=True) if count]

    def mean(tilt: float) -> float:
        return math.fsum(share * value / (1 + tilt * value) for share, value in seen)

    # A kind's probability is at most 1, which bounds λ on either side; `mean` falls between the bounds.
    tilt = _root(mean, (at[high] / n - 1) / high, (at[low] / n - 1) / low)
    probabilities = [(share / (1 + tilt * value), value) for share, value in seen]
    rest = max(0.0, 1 - math.fsum(p for p, _ in probabilities))
    end = high if tilt < 0 else low
    return math.fsum(p * value * value for p, value in probabilities) + rest * end * end


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    return float(brentq(falling, low, high, xtol=1e-14, rtol=1e-13))


@dataclass(frozen=True)
class Contrast:
    """Σ w z̄ over strata with its variance; strata are tasks, and a single one is the common case.

    A stratum of right-or-wrong items brings its null variance, other scores their sample variance. With several strata
    the hypothesis speaks of their sum only, so each may be away from zero by itself, and the larger of the two
    variances is taken: the first is right where few answers differ, the second where strata differ.
    """

    strata: tuple[Stratum, ...]
    weights: tuple[float, ...]

    @property
    def means(self) -> tuple[float, float]:
        """Weighted sums of the candidate's and the reference's means."""
        own, other = (
            math.fsum(w * s.means[side] for w, s in zip(self.weights, self.strata, strict=True)) for side in (0, 1)
        )
        return own, other

    def mean(self, phi: float) -> float:
        """Gives Σ w z̄ at θ = tan φ."""
        return math.cos(phi) * self.means[0] - math.sin(phi) * self.means[1]

    def excess(self, phi: float, *, level: float) -> float:
        """Gives how far |Σ w z̄| is beyond what chance explains at that level; positive when θ is ruled out."""
        parts = [w * w * self._variance(s, phi) / s.n for w, s in zip(self.weights, self.strata, strict=True)]
        return abs(self.mean(phi)) - self._quantile(parts, level) * math.sqrt(math.fsum(parts))

    def _variance(self, stratum: Stratum, phi: float) -> float:
        if stratum.counts is None:
            return stratum.sample_variance(phi)
        null = stratum.null_variance(phi)
        return null if len(self.strata) == 1 else max(null, stratum.sample_variance(phi))

    def _quantile(self, parts: Sequence[float], level: float) -> float:
        """Student's t with the degrees of freedom of F. E. Satterthwaite (Biometrics Bulletin 2, 1946, 110-114)."""
        estimated = [(part, s.n - 1) for part, s in zip(parts, self.strata, strict=True) if s.counts is None]
        lost = math.fsum(part * part / degrees for part, degrees in estimated)
        if lost == 0:
            return normal_quantile(level)
        return student_quantile(level, degrees=math.fsum(parts) ** 2 / lost)

    @property
    def is_constant(self) -> bool:
        """True when no item tells anything about the spread: scores that are all in the same proportion."""
        if any(stratum.counts is not None for stratum in self.strata):
            return False
        phi = math.atan2(*self.means)
        spread = math.fsum(stratum.sample_variance(phi) for stratum in self.strata)
        return spread <= 1e-18 * math.fsum(sum(stratum.covariances[:2]) + 1 for stratum in self.strata)
