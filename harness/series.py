"""Launches of a series as a store holds them: where each belongs, what it timed, and what disturbed it.

A launch is an attempt of its cell like any other. What makes it part of a series stands in its record, under
`machine["interleaved"]`; nothing beside the records says anything, so nothing can disagree with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from harness.gate.noise import TIMED
from harness.gate.speed import Timed
from harness.record import Metric, Observation, Record
from harness.spec import Cell, Value
from harness.statistics.launches import Launch, Side
from harness.store import Store, read_rows

MARK = "interleaved"
STEAL_SHARE = 0.02
"""A hypervisor that ran others for more than this share of the processors' time disturbed a launch."""
TICKS_PER_S = 100
"""Linux shows stolen time in hundredths of a second, on every architecture (USER_HZ)."""


class Mark(Value):
    """Where a launch belongs: its series and side, its block and turn, and `again`, the runs of the block before."""

    series: str
    side: Side
    block: int
    turn: int
    again: int = 0


@dataclass(frozen=True)
class Launched:
    """A stored launch that has numbers."""

    mark: Mark
    record: Record
    rows: tuple[Observation, ...]

    @property
    def digest(self) -> str | None:
        """The digest of the bytes that were opened."""
        return self.record.artifact.digest if self.record.artifact else None

    @property
    def timed(self) -> dict[Timed, Launch]:
        """What was timed: one value a repetition where rows have a column of that name, else the metric itself."""
        found = {(one.evaluation, one.task, one.name): self._values(one) for one in self.record.metrics}
        return {
            key: Launch(self.mark.side, self.mark.block, values)
            for key, values in found.items()
            if values and min(values) > 0
        }

    def _values(self, metric: Metric) -> tuple[float, ...]:
        if metric.unit not in TIMED:
            return ()
        own = (row for row in self.rows if (row.evaluation, row.task) == (metric.evaluation, metric.task))
        each = [value for row in own if isinstance(value := row.values.get(metric.name), (int, float))]
        return tuple(map(float, each)) or (metric.value,)


def stored(store: Store, cells: Iterable[Cell], series: str) -> list[Launched]:
    """Gives the launches of a series that have numbers, in the order they ran."""
    folders = {folder: None for cell in cells for folder in store.attempts(cell)}
    found = [one for folder in folders if (one := _launched(store, folder)) and one.mark.series == series]
    return sorted(found, key=lambda one: (one.mark.again, one.mark.block, one.mark.turn))


def newest(store: Store, cell: Cell) -> Launched | None:
    """Gives the newest attempt of a cell if it is a launch of a series and has numbers."""
    return _launched(store, store.attempts(cell)[-1])


def by_metric(launches: Sequence[Launched]) -> dict[Timed, tuple[Launch, ...]]:
    """Gives the launches by what they timed; what some of them did not time is left out."""
    each = [one.timed for one in launches]
    common = set.intersection(*map(set, each)) if each else set[Timed]()
    return {key: tuple(one[key] for one in each) for key in sorted(common)}


def disturbances(record: Record) -> Iterator[str]:
    """Yields what the machine says about a launch that its numbers should not be trusted for."""
    before, after = _soft(record.machine), _soft(record.machine_after)
    stolen, wall = _grown(before, after, "steal_ticks"), record.seconds.get("total")
    processors = before.get("usable_cpus")
    if stolen and wall and isinstance(processors, int) and processors:
        share = stolen / (TICKS_PER_S * wall * processors)
        if share > STEAL_SHARE:
            yield f"the hypervisor ran others for {share:.0%} of the time"
    if _grown(before, after, "throttle_count"):
        yield "the processor was throttled for its temperature"


def _grown(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue], name: str) -> float:
    first, last = before.get(name), after.get(name)
    return last - first if isinstance(first, (int, float)) and isinstance(last, (int, float)) else 0.0


def _soft(facts: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    found = facts.get("soft")
    return found if isinstance(found, dict) else {}


def _launched(store: Store, folder: Path) -> Launched | None:
    record = store.read(folder)
    try:
        mark = Mark.model_validate(record.machine.get(MARK))
    except ValidationError:
        return None  # an attempt of the cell that belongs to no series
    return Launched(mark, record, tuple(read_rows(folder))) if record.outcome.is_measured else None
