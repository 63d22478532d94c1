"""An interval of retention by drawing the clusters again: the cross-check of the formulas.

A bootstrap draws G clusters out of the G there are, with repetition, and looks how the ratio varies. Reading its own
quantiles off (the percentile method) is as wrong as the textbook interval when few answers differ; the studentized
bootstrap takes every draw's ratio in units of that draw's own standard error, t* = (R* - R) / se*, and puts the
quantiles of t* where Student's would stand. Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap,
1993, section 12.5; for clusters A. C. Cameron, J. B. Gelbach and D. L. Miller, Review of Economics and Statistics 90,
2008, 414-427.

Known: it learns from what was seen only. Where nothing differs it knows nothing, so it accompanies a verdict and never
makes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.record import Interval
from harness.statistics.contrasts import Pairs
from harness.statistics.paired import ZERO, Estimate

if TYPE_CHECKING:
    import numpy.typing as npt

STUDENTIZED = "studentized-bootstrap"
CHUNK = 4_000_000
"""Draws times clusters held in memory at once."""


def bootstrap_retention(
    pairs: Pairs,
    *,
    generator: np.random.Generator,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 2000,
) -> Estimate:
    """Gives Σ candidate / Σ reference with its studentized bootstrap interval over clusters (or items).

    A cluster's residual x - R y measures the spread: se² = G / (G - 1) Σ (x - R y)² / (Σ y)², as in `clusters`.
    """
    names = np.arange(pairs.n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    x_G, y_G = np.bincount(names, pairs.candidate), np.bincount(names, pairs.reference)
    count, total = x_G.size, math.fsum(y_G)
    if total <= ZERO:
        return Estimate(None, None, pairs.n, "the reference scored nothing, so there is nothing to keep")
    value = math.fsum(x_G) / total
    # Centred at the estimate: a draw's residuals are then e - (R* - R) y, and no digits are lost.
    e_G = x_G - value * y_G
    error = math.sqrt(count / max(1, count - 1) * math.fsum(e_G * e_G)) / total
    if count < 2 or error <= ZERO:
        return Estimate(value, None, pairs.n, "the clusters have no spread to go by")
    t_D = _studentized(np.stack([e_G, y_G, e_G * e_G, e_G * y_G, y_G * y_G], axis=1), generator, draws)
    # Next draw outwards: an interval between two draws would need their mean, and that of an infinite one is none.
    high_t = float(np.quantile(t_D, 0.5 + level / 2, method="higher"))
    low_t = float(np.quantile(t_D, 0.5 - level / 2, method="lower"))
    if not (math.isfinite(high_t) and math.isfinite(low_t)):
        return Estimate(value, None, pairs.n, "too few answers differ for draws to have a spread")
    ends = Interval(low=value - high_t * error, high=value - low_t * error, level=level, method=STUDENTIZED)
    return Estimate(value, ends, pairs.n)


def _studentized(
    features_GF: npt.NDArray[np.float64], generator: np.random.Generator, draws: int
) -> npt.NDArray[np.float64]:
    """Gives (R* - R) / se* of every draw; without any spread it is infinite to the side of R*, or 0 at R itself."""
    count = features_GF.shape[0]
    even_G = np.full(count, 1 / count)
    size = max(1, CHUNK // count)
    parts = [min(size, draws - start) for start in range(0, draws, size)]
    sums_DF = np.concatenate([generator.multinomial(count, even_G, size=part) @ features_GF for part in parts])
    e_D, y_D, ee_D, ey_D, yy_D = sums_DF.T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift_D = e_D / y_D
        squares_D = np.maximum(0.0, ee_D - 2 * shift_D * ey_D + shift_D**2 * yy_D)
        squares_D[squares_D <= 1e-14 * (ee_D + 1e-300)] = 0.0
        t_D: npt.NDArray[np.float64] = shift_D / (np.sqrt(count / (count - 1) * squares_D) / y_D)
    # A draw whose reference scored nothing has a ratio without bounds; one where nothing differs has no error.
    t_D[(y_D <= 0) | np.isnan(shift_D)] = np.inf
    t_D[np.isnan(t_D)] = 0.0
    return t_D
