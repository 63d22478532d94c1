"""Which of several choices no other choice beats in everything: the Pareto frontier."""

from __future__ import annotations

from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Gives the indices of points that no other is at most in both and below in one, by rising first coordinate.

    Both coordinates are costs. Of equal points the first stays.

    >>> frontier([(3, 1), (1, 3), (2, 2), (2, 3), (1, 3)])
    [1, 2, 0]
    """
    kept: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda index: (points[index], index)):
        if points[index][1] < best:
            kept.append(index)
            best = points[index][1]
    return kept
