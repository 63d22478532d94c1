"""Reading numbers back out of observations, for evaluations that summarize their own rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.record import Observation


def column(rows: Iterable[Observation], name: str) -> list[float]:
    """Gives one value of each row as a float; rows without it (absent or None) are left out."""
    found = [row.values.get(name) for row in rows]
    return [float(value) for value in found if isinstance(value, (int, float))]


def by_task(rows: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Groups rows by task, tasks in alphabetical order and rows by sample, so that the order seen does not matter."""
    groups: dict[str, list[Observation]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.task, row.sample)):
        groups[row.task].append(row)
    return dict(groups)
