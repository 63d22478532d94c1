"""Many questions asked at once, and how often one of them answers wrongly by luck alone.

Of twenty lossless tasks one shows "a loss at 5 %". Two corrections, for two uses. Holm's keeps the chance of *any*
false alarm below α whatever the dependence between the tests: what a gate needs, where one false alarm fails a build
(S. Holm, Scandinavian Journal of Statistics 6, 1979, 65-70). Benjamini and Hochberg's keeps the expected *share* of
false ones among those called out below α, for independent or positively dependent tests: what a table for exploring
needs (JRSS B 57, 1995, 289-300). Both give adjusted p-values, to be held against α itself.

Neither is for proofs of "no loss": a claim that every task is non-inferior is wrong only if some task is wrong, and
needs no correction (R. L. Berger, Technometrics 24, 1982, 295-300).
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Gives the adjusted p-values in the order given: the k-th smallest of m times m - k + 1, never falling.

    >>> holm([0.01, 0.04, 0.03])  # 3 * 0.01, then 2 * 0.03, and 0.04 is not below the one before it
    (0.03, 0.06, 0.06)
    """
    assert all(0 <= p <= 1 for p in p_values), p_values
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Gives the adjusted p-values in the order given: the k-th smallest of m times m / k, never rising from the end.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])  # 0.04 * 3 / 3, then 0.03 * 3 / 2 is above it, then 0.01 * 3
    (0.03, 0.04, 0.04)
    """
    from scipy.stats import false_discovery_control

    if not p_values:
        return ()
    return tuple(float(p) for p in false_discovery_control(p_values, method="bh"))
