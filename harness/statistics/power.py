"""How many items it takes to show that a compressed model lost less than a margin, before any are run.

Only items answered differently carry news, so what decides is the share ρ of changed answers and not the accuracy: the
paired difference has variance ρ when nothing is lost on balance. Unpaired tables need twenty times as many items.
"""

from __future__ import annotations

import math
from statistics import NormalDist


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


def _quantiles(power: float, alpha: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)
