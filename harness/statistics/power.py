"""How many items it takes to show that a compressed model lost less than a margin, or more, before any are run.

Only items answered differently carry news, so what decides is the share ρ of changed answers and not the accuracy: the
paired difference has variance ρ when nothing is lost on balance. Unpaired tables need twenty times as many items. Items
answered several times have the variance of `paired_variance` instead, which goes where ρ goes.

Known: these are the formulas of many changed answers. Where ρ is not above the margin, a score test allows for changes
that have not been seen yet and needs more; `score_power` predicts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from harness.statistics.contrasts import null_variance


def required_items(
    discordance: float, *, margin: float, power: float = 0.8, alpha: float = 0.05, loss: float = 0
) -> int:
    """Gives n = (z_α + z_β)² ρ / (δ - loss)², the paired items that show "the loss is below δ" with that power.

    `discordance` ρ is the share of items answered differently, `margin` δ and the true `loss` are on the scale of
    scores; α is one-sided.

    >>> required_items(0.05, margin=0.01)
    3092
    """
    assert 0 <= discordance <= 1
    assert margin > loss
    return math.ceil(_quantiles(power, alpha) ** 2 * discordance / (margin - loss) ** 2)


def detectable_margin(n: int, *, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Gives the smallest margin that n paired items can show with that power when nothing is lost."""
    assert n > 0
    return _quantiles(power, alpha) * math.sqrt(discordance / n)


def power_of(n: int, *, discordance: float, margin: float, alpha: float = 0.05, loss: float = 0) -> float:
    """Gives the chance that n paired items show "the loss is below the margin".

    >>> round(power_of(6000, discordance=0.08, margin=0.01), 2)
    0.86
    """
    assert discordance > 0
    normal = NormalDist()
    return normal.cdf((margin - loss) * math.sqrt(n / discordance) - normal.inv_cdf(1 - alpha))


def items_to_breach(
    discordance: float, *, excess: float, power: float = 0.8, alpha: float = 0.001, tests: int = 1
) -> int:
    """Gives the paired items that show "the loss is above the margin" when it is, by `excess` = loss - margin.

    α is one-sided and shared by `tests` that are asked at once, each at α / m (Bonferroni's bound, which Holm's
    procedure never falls below).

    >>> items_to_breach(0.05, excess=0.01, alpha=0.05)  # as many as show a loss of 0 to be below a margin of 0.01
    3092
    """
    assert excess > 0
    assert tests >= 1
    return required_items(discordance, margin=excess, power=power, alpha=alpha / tests)


def detectable_loss(
    n: int, *, discordance: float, margin: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Gives the smallest true loss that n paired items show to be above the margin with that power."""
    return margin + detectable_margin(n, discordance=discordance, power=power, alpha=alpha)


def paired_variance(between: float, *, within: float, repeats: int) -> float:
    """Gives ω² + 2 σ² / K, an item's variance of candidate - reference when each answers it K times.

    `between` ω² is the variance over items of the true difference, `within` σ² that of one model's answers to one item.
    Repeats help until 2 σ² / K is as small as ω²; from there on only items do. Source: E. Miller, Adding error bars to
    evals (arXiv 2411.00640), section 3.

    >>> paired_variance(0.02, within=0.08, repeats=8)
    0.04
    >>> required_items(paired_variance(0.02, within=0.08, repeats=8), margin=0.01)
    2474
    """
    assert between >= 0
    assert within >= 0
    assert repeats >= 1
    return between + 2 * within / repeats


def score_power(shares: Sequence[float], values: Sequence[float], *, n: int, alpha: float = 0.05) -> float:
    """Gives the chance that n items show the mean of a score to be above zero, by a score test at a one-sided α.

    An item scores `values[j]` with probability `shares[j]`. The test's standard error σ0 is the one most likely if the
    mean were zero, the draws' own is σ1: Φ((√n μ - z_α σ0) / σ1), the usual form for tests of proportions (J. L.
    Fleiss, Statistical Methods for Rates and Proportions, 2nd ed., 1981, section 3.2).
    """
    mean = math.fsum(p * v for p, v in zip(shares, values, strict=True))
    spread = math.sqrt(math.fsum(p * (v - mean) ** 2 for p, v in zip(shares, values, strict=True)))
    assumed = math.sqrt(null_variance([n * p for p in shares], values))
    normal = NormalDist()
    ahead = math.sqrt(n) * mean - normal.inv_cdf(1 - alpha) * assumed
    if spread == 0:
        return 1.0 if ahead > 0 else 0.0
    return normal.cdf(ahead / spread)


def _quantiles(power: float, alpha: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)
