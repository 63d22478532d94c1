"""One side of a comparison: the records of one configuration under one suite, with their rows.

Usually that is a single record. A suite that was asked in parts, so that a night may stop early, gives several; their
rows together are what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.gate.verdict import Side
from harness.interfaces import Results
from harness.record import Identity, Metric, Observation, Outcome, Record
from harness.spec import Cell, Suite, Use
from harness.statistics.items import Item, Task, scored

PART = "part"
"""The argument of an evaluation that says which part of its items it asks: `[k, K]`."""

Key = tuple[str, str, str, str, str, int]


@dataclass(frozen=True)
class Measured:
    """The records that share a configuration and a suite, in the order of their parts, with each record's rows."""

    records: tuple[Record, ...]
    rows: tuple[tuple[Observation, ...], ...]

    @property
    def cell(self) -> Cell:
        """The first part's cell; all parts agree on everything but the part."""
        return self.records[0].cell

    @property
    def key(self) -> Key:
        """What names this side in another run: the family, pipeline, runtime, device, suite and seed, by name."""
        return key_of(self.cell)

    @property
    def label(self) -> str:
        """The configuration in words, without the suite."""
        family, pipeline, runtime, hardware, _, seed = self.key
        return " / ".join((family, pipeline, runtime, hardware, *([f"seed {seed}"] if seed else [])))

    @property
    def identity(self) -> Identity | None:
        """What was loaded, of the first record that says it."""
        return next((record.identity for record in self.records if record.identity), None)

    @property
    def failure(self) -> str:
        """Why there are no numbers, or nothing."""
        bad = next((record for record in self.records if not record.outcome.is_measured), None)
        if bad is None:
            return ""
        return f"{bad.outcome.value}: {bad.error.reason}" if bad.error else bad.outcome.value

    @property
    def is_emulated(self) -> bool:
        """True when the weights that ran were not packed."""
        return any(record.outcome is Outcome.EMULATED for record in self.records)

    @cached_property
    def items(self) -> Mapping[Task, Mapping[str, Item]]:
        """All scored items by task and sample."""
        return scored(row for part in self.rows for row in part)

    @cached_property
    def metrics(self) -> Mapping[tuple[str, str, str], Metric]:
        """Metrics by evaluation, task and name; of a suite in parts, those of the last part that has them."""
        return {(m.evaluation, m.task, m.name): m for record in self.records for m in record.metrics}

    @property
    def whole_suite(self) -> Suite:
        """The suite without its parts: what two sides must agree on."""
        return without_parts(self.cell.suite)

    @property
    def part_count(self) -> int:
        """Into how many parts the suite was cut; 1 when it was asked as a whole."""
        return max((_part(use)[1] for use in self.cell.suite.evaluations), default=1)

    def shared_parts(self, other: Measured) -> Measured:
        """Gives this side without the parts that another side, cut into as many, was not asked."""
        if self.part_count == 1 or self.part_count != other.part_count:
            return self
        asked = {_first_part(record) for record in other.records}
        kept = [index for index, record in enumerate(self.records) if _first_part(record) in asked]
        return Measured(tuple(self.records[i] for i in kept), tuple(self.rows[i] for i in kept)) if kept else self

    def part_of(self, task: Task, names: Iterable[str]) -> tuple[int, ...]:
        """Gives for each item of a task the part in which it was asked."""
        found = {
            row.sample: _first_part(record)[1]
            for record, part in zip(self.records, self.rows, strict=True)
            for row in part
            if (row.evaluation, row.task) == task
        }
        return tuple(found[name] for name in names)

    def side(self) -> Side:
        """Gives the side in words."""
        identity, artifact = self.identity, self.records[0].artifact
        nominal = artifact.nominal_bytes if artifact and self.is_emulated else None
        packed = None if self.is_emulated or identity is None else identity.weights_disk_bytes
        bits = None if self.is_emulated or identity is None else identity.bits_per_weight
        if nominal is not None and identity is not None:
            bits = 8 * nominal / identity.parameters
        return Side(
            label=self.label,
            cell=self.cell.id,
            outcome=self.records[0].outcome.value,
            bits_per_weight=bits,
            size_bytes=packed if nominal is None else nominal,
        )


def key_of(cell: Cell) -> Key:
    """Names a cell by what its matrix calls its parts."""
    family = cell.model.family
    if cell.model.role == "variant":
        family += f" ({cell.model.source.partition(':')[2]})"
    return (family, cell.pipeline.name, str(cell.runtime), cell.hardware.name, cell.suite.name, cell.seed)


def without_parts(suite: Suite) -> Suite:
    """Gives the suite as if it had been asked as a whole."""
    plain = tuple(
        Use(use=use.use, args={name: value for name, value in use.args.items() if name != PART})
        for use in suite.evaluations
    )
    return suite.model_copy(update={"evaluations": plain})


def measured(results: Results, records: Iterable[Record] | None = None) -> list[Measured]:
    """Groups records into sides, ordered by key; all of `results` unless some are named."""
    groups: dict[Key, dict[tuple[int, int], Record]] = {}
    for record in sorted(results.records if records is None else records, key=lambda record: record.started_at):
        # A store may still hold what a name stood for before its arguments were changed: the newest counts.
        group = groups.setdefault(key_of(record.cell), {})
        group.pop(_first_part(record), None)
        group[_first_part(record)] = record
    made = []
    for _, group in sorted(groups.items()):
        whole, _ = next(reversed(group))  # as the newest record was cut
        ordered = [record for (count, _), record in sorted(group.items()) if count == whole]
        made.append(Measured(tuple(ordered), tuple(tuple(results.observations(record)) for record in ordered)))
    return made


def _first_part(record: Record) -> tuple[int, int]:
    """Gives into how many parts a record's suite was cut, and which of them it is."""
    return max(((count, index) for index, count in map(_part, record.cell.suite.evaluations)), default=(1, 1))


def _part(use: Use) -> tuple[int, int]:
    said = use.args.get(PART)
    if isinstance(said, list) and len(said) == 2 and all(isinstance(number, int) for number in said):
        return int(str(said[0])), int(str(said[1]))
    return (1, 1)
