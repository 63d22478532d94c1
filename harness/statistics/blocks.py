"""Whether several treatments differ when each was tried once in every block: orders of stages under the same seeds.

A seed shifts all orders alike, so it is a block, and what is left after orders and seeds is the error. The F test is
the two-way analysis of variance without replication (D. C. Montgomery, Design and Analysis of Experiments, 8th ed.,
2013, section 4.1); the largest difference is held against J. W. Tukey's studentized range with the same error, which is
honest although the pair was picked for being the farthest apart; M. Friedman's test (JASA 32, 1937, 675-701) asks the
same of ranks alone. Two seeds leave few degrees of freedom: "no effect shown" may only mean "too few seeds".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OrderEffect:
    """What the blocks say; where they cannot tell, `f`, `p` and `tukey_p` are None and `reason` says why.

    `lowest` and `highest` are the indices of the treatments that are farthest apart, `difference` by how much.
    """

    means: tuple[float, ...]
    degrees: tuple[int, int]
    f: float | None
    p: float | None
    lowest: int
    highest: int
    difference: float
    tukey_p: float | None
    friedman_p: float | None
    reason: str = ""


def order_effect(scores_KB: Sequence[Sequence[float]]) -> OrderEffect:
    """Tests K treatments (rows) that were each measured once in each of B blocks (columns); both at least two."""
    from scipy.stats import f as f_distribution
    from scipy.stats import studentized_range

    count, blocks = len(scores_KB), len(scores_KB[0])
    assert count > 1, f"{count} treatments"
    assert blocks > 1, f"{blocks} blocks"
    assert all(len(row) == blocks for row in scores_KB), "a treatment that was not measured in every block"
    means = tuple(math.fsum(row) / blocks for row in scores_KB)
    in_block = [math.fsum(column) / count for column in zip(*scores_KB, strict=True)]
    grand = math.fsum(means) / count
    between = blocks * math.fsum((mean - grand) ** 2 for mean in means)
    rest = math.fsum(
        (value - mean - level + grand) ** 2
        for row, mean in zip(scores_KB, means, strict=True)
        for value, level in zip(row, in_block, strict=True)
    )
    degrees = (count - 1, (count - 1) * (blocks - 1))
    lowest, highest = (means.index(end(means)) for end in (min, max))
    difference = means[highest] - means[lowest]
    ranked = _friedman(scores_KB)
    scale = max(abs(value) for row in scores_KB for value in row)
    if math.sqrt(rest) <= 1e-12 * scale:
        reason = "the seeds leave no error to compare with: every seed gives the same differences"
        return OrderEffect(means, degrees, None, None, lowest, highest, difference, None, ranked, reason)
    error = rest / degrees[1]
    ratio = between / degrees[0] / error
    tukey = studentized_range.sf(difference / math.sqrt(error / blocks), count, degrees[1])
    p = float(f_distribution.sf(ratio, *degrees))
    return OrderEffect(means, degrees, ratio, p, lowest, highest, difference, float(tukey), ranked)


def _friedman(scores_KB: Sequence[Sequence[float]]) -> float | None:
    """Gives Friedman's p-value; None for two treatments, where it has no chi-squared form, or when all are tied."""
    from scipy.stats import friedmanchisquare

    if len(scores_KB) < 3 or all(len(set(column)) == 1 for column in zip(*scores_KB, strict=True)):
        return None
    return float(friedmanchisquare(*scores_KB).pvalue)
