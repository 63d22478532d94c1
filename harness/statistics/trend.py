"""Nights on which a series of one number a night moved to another level, as notes on a chart and never as a verdict.

A machine that is slow tonight is slow for everything, so each number is first held against a canary: a reference that
was measured in the same night and never changes (a log ratio for speed, a difference for accuracy). What both did
cancels. In what is left, the stretch of nights is sought whose mean lies farthest from that of the other nights; at the
series' end that is one step, inside it there and back again (circular binary segmentation: A. B. Olshen, E. S.
Venkatraman, R. Lucito and M. Wigler, Biostatistics 5, 2004, 557-572). The best of so many stretches looks striking in
pure noise too, so it is held against the best of the same numbers in shuffled order, and counts when at most a share
alpha of the shuffled ones does as well. Then the pieces are searched in turn.

Shuffled nights are independent and real ones resemble their neighbours, which alone makes stretches. The F of the
stretch is therefore divided by (1 + φ) / (1 - φ), by which correlation φ of neighbours inflates it, where the mean
squared step over two nights is 1 + φ times that over one: a level that moves once or twice hardly touches either.

Known: steps in the last four nights are not seen, for a level needs five; a slow drift is shown as a staircase. Alpha
is the chance that a series of independent nights which never moved gets a note when it is drawn; who draws it every
night tests it every night. In simulations at the default alpha, six nights after a step of five standard deviations
it was found within a night in 88 % of series of 30 nights and 98 % of 60, a step of three in 55 and 79 %. Where
neighbours were correlated by 0.5 a nominal 5 % was 12 to 18 %, and a nominal 0.1 % was 1 to 3 % (without the division
42 to 68 %, and 4 to 20 %).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

NIGHTS_MIN = 5
"""The shortest stretch that is called a level."""
SHUFFLES = 1999
BATCH = 100
WILD = 6.0
"""Steps beyond six times their median are not the noise's: of normal ones, whose sd is 1.48 medians, one in 20 000."""

Night = float | None
"""One night's number; None where it was not measured."""


@dataclass(frozen=True)
class Change:
    """The first night at a new level, the medians of the levels on either side, and how rarely chance does as well."""

    night_index: int
    before: float
    after: float
    p: float


def normalized(
    values: Sequence[Night], canary: Sequence[Night], *, scale: Literal["ratio", "difference"]
) -> tuple[Night, ...]:
    """Gives ln(value / canary) or value - canary, night by night; None where either was not measured.

    Raises ValueError for a ratio of numbers that are not positive.

    >>> normalized([0.5, None, 0.25], [0.25, 0.25, 0.25], scale="difference")
    (0.25, None, 0.0)
    """
    assert len(values) == len(canary), f"{len(values)} nights, {len(canary)} of the canary"
    if scale == "difference":
        return tuple(
            None if own is None or other is None else own - other for own, other in zip(values, canary, strict=True)
        )
    wrong = [number for number in (*values, *canary) if number is not None and number <= 0]
    if wrong:
        raise ValueError(f"{wrong[0]} has no ratio to a canary: give times, rates or sizes above 0")
    return tuple(
        None if own is None or other is None else math.log(own / other)
        for own, other in zip(values, canary, strict=True)
    )


def changes(
    values: Sequence[Night], *, generator: np.random.Generator, alpha: float = 0.001, smallest: float = 0.0
) -> tuple[Change, ...]:
    """Gives the changes of level, first to last, that are no smaller than `smallest` in the series' own unit.

    Missing nights are skipped, and `night_index` counts them; a change may have come in any missing night before it.
    """
    assert 1 / (SHUFFLES + 1) <= alpha < 1, f"{SHUFFLES} shuffles cannot show a p of {alpha}"
    present = [(night, value) for night, value in enumerate(values) if value is not None]
    numbers = [float(value) for _, value in present]
    p_of_cut: dict[int, float] = {}
    pieces = [(0, len(numbers))]
    while pieces:
        start, end = pieces.pop()
        found = _test(np.array(numbers[start:end]), alpha=alpha, generator=generator)
        if found is None:
            continue
        cuts, p = found
        p_of_cut.update({start + cut: p for cut in cuts})
        ends = [start, *(start + cut for cut in cuts), end]
        pieces.extend(pairwise(ends))
    return tuple(
        Change(present[cut][0], before, after, p_of_cut[cut])
        for cut, before, after in _levels(numbers, sorted(p_of_cut), smallest)
    )


def frozen(values: Sequence[Night], nights: int) -> int | None:
    """Gives for how many measured nights, the last one included, a series has been the very same number; or None.

    None where that is fewer than `nights`. Where noise is expected, a number that does not move in its last digit was
    not measured: a cache answered.

    >>> frozen([7.1, 7.3, 7.2, None, 7.2, 7.2], 3), frozen([7.1, 7.2, 7.2], 3)
    (3, None)
    """
    assert nights > 1, "one night cannot move"
    measured = [value for value in reversed(values) if value is not None]
    same = next((at for at, value in enumerate(measured) if value != measured[0]), len(measured))
    return same if same >= nights else None


def _levels(numbers: Sequence[float], cuts: Sequence[int], smallest: float) -> list[tuple[int, float, float]]:
    """Gives the cuts with the medians on either side, without the smallest steps one after another."""
    kept = list(cuts)
    while True:
        ends = [0, *kept, len(numbers)]
        medians = [statistics.median(numbers[start:end]) for start, end in pairwise(ends) if end]
        found = list(zip(kept, medians, medians[1:], strict=False))
        least = min(found, key=lambda step: abs(step[2] - step[1]), default=None)
        if least is None or abs(least[2] - least[1]) >= smallest:
            return found
        kept.remove(least[0])


def _test(
    values_N: npt.NDArray[np.float64], *, alpha: float, generator: np.random.Generator
) -> tuple[list[int], float] | None:
    """Gives where the stretch that stands out begins and ends within the series, and its p; None if it is above alpha.

    Shuffling stops as soon as enough were as good to make p too large, which changes no answer.
    """
    count = values_N.size
    away_N = values_N - values_N.mean() if count else values_N
    if count < 2 * NIGHTS_MIN or not away_N.any() or values_N.min() == values_N.max():
        return None
    share, (start, end) = _explained(away_N[None])
    cuts = [cut for cut in (start, end) if 0 < cut < count]
    correlation = _correlation(values_N, cuts)
    shrunk = float(share[0]) * (1 - correlation)
    observed = shrunk / (shrunk + (1 - float(share[0])) * (1 + correlation))
    allowed, as_good, shuffled = alpha * (SHUFFLES + 1), 1, 0
    while shuffled < SHUFFLES:
        drawn_BN = np.tile(away_N, (min(BATCH, SHUFFLES - shuffled), 1))
        shuffled += len(drawn_BN)
        # A shuffled series may repeat the very same stretch; sums in another order differ by rounding.
        as_good += int((_explained(generator.permuted(drawn_BN, axis=1))[0] >= observed - 1e-12).sum())
        if as_good > allowed:
            return None
    return cuts, as_good / (SHUFFLES + 1)


def _explained(away_BN: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """Gives the largest share of every row's squares that one stretch's mean explains, and the first row's stretch.

    Rows have mean zero. A stretch of m nights with sum s explains s² n / (m (n - m)). The stretch and what is left on
    either side of it have at least `NIGHTS_MIN` nights, or none.
    """
    rows, count = away_BN.shape
    sums_BN = np.concatenate([np.zeros((rows, 1)), away_BN.cumsum(axis=1)], axis=1)
    best_B, first, where = np.zeros(rows), -1.0, (0, 0)
    for length in range(NIGHTS_MIN, count - NIGHTS_MIN + 1):
        start_S = np.arange(count - length + 1)
        left_S, right_S = start_S, count - length - start_S
        start_S = start_S[((left_S == 0) | (left_S >= NIGHTS_MIN)) & ((right_S == 0) | (right_S >= NIGHTS_MIN))]
        squares_BS = (sums_BN[:, start_S + length] - sums_BN[:, start_S]) ** 2 * (count / length / (count - length))
        best_B = np.maximum(best_B, squares_BS.max(axis=1))
        if squares_BS[0].max() > first:
            start = int(start_S[squares_BS[0].argmax()])
            first, where = float(squares_BS[0].max()), (start, start + length)
    return np.minimum(best_B / (away_BN**2).sum(axis=1), 1.0), where


def _correlation(values_N: npt.NDArray[np.float64], cuts: Sequence[int]) -> float:
    """Gives the correlation of neighbouring nights, at least 0, from steps over one and two nights.

    Left out are steps across the cuts, and wild ones: those are other cuts, or a night on which something broke.
    """
    one_N, two_N = np.abs(np.diff(values_N)), np.abs(values_N[2:] - values_N[:-2])
    single = _mean_square(np.delete(one_N, [cut - 1 for cut in cuts]))
    double = _mean_square(np.delete(two_N, [at for cut in cuts for at in (cut - 2, cut - 1)]))
    return min(max(double / single - 1, 0.0), 1.0) if single > 0 else 0.0


def _mean_square(steps_N: npt.NDArray[np.float64]) -> float:
    return float((steps_N[steps_N <= WILD * np.median(steps_N)] ** 2).mean())
