"""Looking at the items before all of them are in, and stopping early without more false alarms.

Who tests after every fifth of the items and stops at the first p below 5 % errs far more often than in 5 % of the
cases. P. C. O'Brien and T. R. Fleming (Biometrics 35, 1979, 549-556) ask so much of the early looks that the chance to
be wrong at *any* of them is what was asked for: at look k of K the score's z must reach c sqrt(K / k). On the scale of
sums this is a random walk with independent normal steps that must reach the constant level c, and c follows from the
chance that such a walk of K steps ever does. That chance is computed look by look: the density of the walks that have
not crossed yet is convolved with one more step (P. Armitage, C. K. McPherson and B. C. Rowe, JRSS A 132, 1969,
235-244; C. Jennison and B. W. Turnbull, Group Sequential Methods, 2000, chapter 19).

Acceptance and breach are two such tests in opposite directions. Each has its own bounds, computed as if the other could
not stop the comparison first; that it can only makes either error rarer.

Known: looks are taken to be equally far apart in items, and items to come in an order that has nothing to do with how
they are answered (a fixed random order). Stopping early makes the estimate at that look too extreme on average; p is
right, the point estimate is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LOOKS_MAX = 50
"""Beyond this many looks a step is too narrow for the nodes below."""
NODES = 256
FLOOR = -9.0
"""Walks that have fallen below this weigh 1e-19 and are left out."""

Direction = Literal["accept", "breach"]


@dataclass(frozen=True)
class Stop:
    """The look (counted from 1) at which a comparison may stop, and what it has then shown."""

    look: int
    direction: Direction


def crossing_probability(level: float, *, looks: int) -> float:
    """Gives the chance that a walk of `looks` independent N(0, 1/looks) steps is at or above `level` after any of them.

    Between P(Z >= level), which it is for a single look, and twice that (the reflection principle). Gauss-Legendre
    quadrature over the walks that have not crossed, N nodes between `FLOOR` and the level.
    """
    from scipy.special import ndtr

    assert 1 <= looks <= LOOKS_MAX, f"{looks} looks"
    step = 1 / math.sqrt(looks)
    crossed = float(ndtr(-level / step))
    if looks == 1 or level <= FLOOR:
        return crossed
    unit_N, weight_N = _nodes()
    half = (level - FLOOR) / 2
    at_N, weight_N = FLOOR + half * (unit_N + 1), half * weight_N
    exit_N = ndtr((at_N - level) / step)
    kernel_NN = _density((at_N[:, None] - at_N[None, :]) / step) / step
    density_N = _density(at_N / step) / step
    for look in range(2, looks + 1):
        crossed += float(weight_N * density_N @ exit_N)
        if look < looks:
            density_N = kernel_NN @ (weight_N * density_N)
    return crossed


@cache
def _nodes() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Gives the quadrature's nodes and weights on [-1, 1], which cost more to find than to use."""
    return np.polynomial.legendre.leggauss(NODES)


def _density(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    density: npt.NDArray[np.float64] = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return density


def bounds(looks: int, *, alpha: float) -> tuple[float, ...]:
    """Gives the z that a one-sided score must reach at each of `looks` equally spaced looks, O'Brien and Fleming's.

    >>> [round(z, 2) for z in bounds(5, alpha=0.05)]  # 1.751 sqrt(5 / k)
    [3.92, 2.77, 2.26, 1.96, 1.75]
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    assert 0 < alpha < 0.5, f"alpha {alpha}"

    def excess(level: float) -> float:
        return math.log(crossing_probability(level, looks=looks) / alpha)

    single, unending = -float(ndtri(alpha)), -float(ndtri(alpha / 2))
    # A hair wider: where alpha is tiny two looks cost no more than rounding.
    level = single if looks == 1 else float(brentq(excess, single - 1e-9, unending, xtol=1e-12))
    return tuple(level * math.sqrt(looks / look) for look in range(1, looks + 1))


def nominal_levels(looks: int, *, alpha: float) -> tuple[float, ...]:
    """Gives the one-sided p at or below which each look may stop: what `bounds` are for a test that gives p-values."""
    from scipy.special import ndtr

    return tuple(float(ndtr(-z)) for z in bounds(looks, alpha=alpha))


def stopped(
    p_accepts: Sequence[float], p_breaches: Sequence[float], *, alpha_accept: float, alpha_breach: float, looks: int
) -> Stop | None:
    """Gives the first look at which one of two opposite one-sided tests may stop; None while neither may.

    One p-value of each test for every look taken so far, of the `looks` planned. Tests of one margin cannot both stop
    at a look; should two tests of different margins do so, the breach counts.
    """
    assert len(p_accepts) == len(p_breaches) <= looks, f"{len(p_accepts)} and {len(p_breaches)} of {looks} looks"
    accept, breach = nominal_levels(looks, alpha=alpha_accept), nominal_levels(looks, alpha=alpha_breach)
    for at, (p_accept, p_breach) in enumerate(zip(p_accepts, p_breaches, strict=True)):
        if p_breach <= breach[at]:
            return Stop(at + 1, "breach")
        if p_accept <= accept[at]:
            return Stop(at + 1, "accept")
    return None


def overall_p(p_values: Sequence[float], *, looks: int) -> float:
    """Gives one p-value for all looks so far: the smallest alpha at which one of them could have stopped.

    The chance that a walk of all `looks` planned reaches the highest level that this one has reached. It is at most
    alpha exactly when `nominal_levels` of that alpha would have stopped, so it is what a correction for several tests
    (Holm's) may be given.

    >>> round(overall_p([0.04], looks=1), 12)
    0.04
    """
    from scipy.special import ndtri

    assert 0 < len(p_values) <= looks, f"{len(p_values)} of {looks} looks"
    reached = max(-float(ndtri(p)) * math.sqrt(look / looks) for look, p in enumerate(p_values, start=1))
    return 0.0 if reached == math.inf else 1.0 if reached == -math.inf else crossing_probability(reached, looks=looks)
