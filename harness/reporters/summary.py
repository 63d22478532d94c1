"""Everything a report says about one row, computed once and shared by tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.interfaces import Results
from harness.reporters.comparison import Comparison, compare
from harness.reporters.frame import Row, rows
from harness.reporters.frontier import frontier
from harness.reporters.speed import Speedup, speedup
from harness.statistics.items import Task
from harness.statistics.paired import Estimate


@dataclass(frozen=True)
class Entry:
    """A row with its comparison (None where nothing could be compared) and its speed-ups."""

    row: Row
    comparison: Comparison | None
    decode: Speedup
    prefill: Speedup

    @property
    def retention(self) -> Estimate | None:
        """The suite-level retention, where there is a value; None for a reference."""
        if self.row.is_reference or self.comparison is None or self.comparison.retention.value is None:
            return None
        return self.comparison.retention

    @property
    def is_indistinct(self) -> bool:
        """True when the retention's interval holds 1: not shown to differ, and not shown to be the same."""
        return self.retention is not None and self.retention.interval is not None and not self.retention.excludes(1)


@dataclass(frozen=True)
class Summary:
    """All entries in the order of the rows, and the tasks that any of them answered."""

    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]

    @property
    def families(self) -> list[str]:
        """The families by name."""
        return sorted({entry.row.family for entry in self.entries})

    def of(self, family: str) -> list[Entry]:
        """Gives a family's entries."""
        return [entry for entry in self.entries if entry.row.family == family]

    def name(self, task: Task) -> str:
        """Gives a task's name, with its evaluation where two evaluations use the same."""
        same = [other for other in self.tasks if other[1] == task[1]]
        return task[1] if len(same) == 1 else f"{task[0]}: {task[1]}"

    def place(self, entry: Entry) -> str:
        """Names where a row ran: the runtime, and the device and the seed where there are several."""
        cell, parts = entry.row.cell, [entry.row.runtime]
        if self._several[0]:
            parts.append(cell.hardware.name)
        if self._several[1]:
            parts.append(f"seed {cell.seed}")
        return ", ".join(parts)

    @cached_property
    def _several(self) -> tuple[bool, bool]:
        """Says whether there are several devices, and several seeds."""
        cells = [entry.row.cell for entry in self.entries]
        return len({cell.hardware.id for cell in cells}) > 1, len({cell.seed for cell in cells}) > 1


def summarize(results: Results) -> Summary:
    """Reads the records and compares every row with its reference."""
    found = rows(results)
    references = [row for row in found if row.is_reference]
    entries = tuple(
        Entry(
            row=row,
            comparison=compare(row, references),
            decode=speedup(row, references, name="decode_tps"),
            prefill=speedup(row, references, name="prefill_tps"),
        )
        for row in found
    )
    return Summary(entries, tuple(sorted({task for row in found for task in row.items})))


def by_size(entries: Sequence[Entry]) -> list[Entry]:
    """Gives the entries that nothing beats in both size and retention, smallest first; emulated ones do not compete."""
    able = [entry for entry in entries if entry.retention and entry.row.size_bytes and not entry.row.is_emulated]
    points = [(float(entry.row.size_bytes or 0), -_value(entry)) for entry in able]
    return [able[index] for index in frontier(points)]


def by_speed(entries: Sequence[Entry]) -> list[Entry]:
    """Gives the entries that nothing beats in both decode speed-up and retention, fastest first."""
    able = [entry for entry in entries if entry.retention and entry.decode.value]
    points = [(-(entry.decode.value or 0.0), -_value(entry)) for entry in able]
    return [able[index] for index in frontier(points)]


def _value(entry: Entry) -> float:
    assert entry.retention is not None
    assert entry.retention.value is not None
    return entry.retention.value
