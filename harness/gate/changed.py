"""The items on which two sides differ, those that tell most first: what a person looks at before believing a number."""

from __future__ import annotations

from collections.abc import Sequence

from harness.gate.measured import Measured
from harness.gate.verdict import ChangedItem
from harness.record import Observation

SHOWN = 10
MARGIN_CAP = 50.0
"""Nats: a larger change of the margin tells no more."""


def changed_items(candidate: Measured, baseline: Measured, *, count: int = SHOWN) -> tuple[ChangedItem, ...]:
    """Gives the items whose score changed: losses before wins, then by how much the score and the margin moved.

    The margin is the log-probability of the right answer minus that of the best wrong one. A flip with a large change
    of it is damage; one with a small change was a coin that fell on its other side.
    """
    before = {(row.evaluation, row.task, row.sample): row for part in baseline.rows for row in part}
    found = []
    for row in (row for part in candidate.rows for row in part):
        other = before.get((row.evaluation, row.task, row.sample))
        if other is not None and (change := _score(row) - _score(other)):
            found.append((change, _moved(row, other), row, other))
    found.sort(key=lambda one: (one[0] > 0, -abs(one[0]), -one[1], one[2].task, one[2].sample))
    return tuple(
        ChangedItem(
            task=row.task,
            sample=row.sample,
            won=change > 0,
            baseline=_text(other, "response"),
            candidate=_text(row, "response"),
            target=_text(row, "target"),
            weight=abs(change) + moved / MARGIN_CAP,
        )
        for change, moved, row, other in _both_kinds(found, count)
    )


Changed = tuple[float, float, Observation, Observation]


def _both_kinds(found: Sequence[Changed], count: int) -> list[Changed]:
    """Takes from the front, but leaves a third of the places to wins where there are some."""
    losses = [one for one in found if one[0] < 0]
    wins = [one for one in found if one[0] > 0]
    room_for_wins = min(len(wins), max(count // 3, count - len(losses)))
    return [*losses[: count - room_for_wins], *wins[:room_for_wins]]


def _score(row: Observation) -> float:
    value = row.values.get("score")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _moved(row: Observation, other: Observation) -> float:
    ours, theirs = row.values.get("margin"), other.values.get("margin")
    if not isinstance(ours, (int, float)) or not isinstance(theirs, (int, float)):
        return 0.0
    return min(abs(ours - theirs), MARGIN_CAP)


def _text(row: Observation, key: str) -> str:
    value = row.values.get(key)
    return "" if value is None else str(value)
