"""How long a plan will take, from what was recorded here before; unknown stays unknown.

A cell is expected to take the median of the earlier cells with the same suite and runtime, a build the median of the
earlier builds of the same step. Whatever has no precedent is counted and said, never guessed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from harness.plan import Item, Plan
from harness.record import Record
from harness.store import Store


@dataclass(frozen=True)
class Estimate:
    """Seconds expected for what has a precedent, and how many steps have none."""

    seconds: float
    unknown: int

    def __str__(self) -> str:
        known = f"about {max(1, round(self.seconds / 60))} min" if self.seconds else ""
        without = f"{self.unknown} steps never run here, of unknown length" if self.unknown else ""
        return " and ".join(filter(None, (known, without))) or "nothing to do"


def estimate(plan: Plan, store: Store) -> Estimate:
    """Adds up the cells that must run and the builds they need that are not cached."""
    records = store.records if any(store.root.glob("*/attempt-*/record.json")) else []
    cells, steps = _history(records)
    run = plan.with_status("run")
    builds = {build.key: build for item in run for build in plan.builds_for(item) if build.key not in plan.cached}
    times = [cells.get(_kind(item)) for item in run] + [steps.get(build.label) for build in builds.values()]
    known = [median(seconds) for seconds in times if seconds]
    return Estimate(sum(known), len(times) - len(known))


def _kind(item: Item) -> tuple[str, str, str]:
    return item.cell.suite.id, item.cell.runtime.id, item.cell.model.id


def _history(records: list[Record]) -> tuple[dict[tuple[str, str, str], list[float]], dict[str, list[float]]]:
    cells, steps = defaultdict(list), defaultdict(list)
    for record in records:
        if record.outcome.is_measured:
            kind = (record.cell.suite.id, record.cell.runtime.id, record.cell.model.id)
            cells[kind].append(sum(value for key, value in record.seconds.items() if key != "total"))
        for cost in record.artifact.costs if record.artifact else ():
            steps[cost.step].append(cost.wall_s)
    return dict(cells), dict(steps)
