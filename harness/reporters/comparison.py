"""What a row keeps of its family's reference, on identical items.

The reference ran on the same runtime and device where there is such a row; a difference is then the compression's.
Otherwise another runtime's reference stands in and every number says so: kernels and batching change answers as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.reporters.frame import Row
from harness.statistics.contrasts import Pairs
from harness.statistics.items import Item, Task, pair
from harness.statistics.paired import Estimate, chance_corrected_retention, difference, mcnemar, retention


@dataclass(frozen=True)
class TaskComparison:
    """One task answered by a row and by its reference.

    `missing` items only the reference answered, `extra` ones only the row, `unlike` ones were asked with other prompts.
    """

    task: Task
    pairs: Pairs | None
    missing: int
    extra: int
    unlike: int
    retention: Estimate
    corrected: Estimate
    difference: Estimate

    @property
    def n(self) -> int:
        """The number of paired items."""
        return self.pairs.n if self.pairs else 0

    @property
    def changed_share(self) -> float | None:
        """The share of items answered differently, of right-or-wrong items."""
        if self.pairs is None or not self.pairs.is_binary:
            return None
        _, won, lost, _ = self.pairs.counts
        return (won + lost) / self.pairs.n

    def p_value(self, *, harm_only: bool = False) -> float | None:
        """Gives McNemar's exact p-value, of right-or-wrong items."""
        binary = self.pairs is not None and self.pairs.is_binary
        return mcnemar(self.pairs, harm_only=harm_only) if binary and self.pairs else None


@dataclass(frozen=True)
class Comparison:
    """All tasks of a row against one reference, and the suite-level retention over those both answered."""

    reference: Row
    same_place: bool
    tasks: tuple[TaskComparison, ...]
    absent: tuple[Task, ...]
    retention: Estimate
    corrected: Estimate

    @property
    def with_chance(self) -> int:
        """The number of tasks whose chance is known: those that `corrected` is about."""
        return sum(task.pairs is not None and task.pairs.chance is not None for task in self.tasks)

    @property
    def is_partial(self) -> bool:
        """True when the row did not answer all that its reference answered."""
        return bool(self.absent) or any(task.missing or task.extra or task.unlike for task in self.tasks)

    def of(self, task: Task) -> TaskComparison | None:
        """Gives the comparison of one task."""
        return next((found for found in self.tasks if found.task == task), None)


def compare(row: Row, references: Sequence[Row]) -> Comparison | None:
    """Compares with the nearest of the references that answered anything; None for lack of one, or for itself."""
    able = [other for other in references if other.items and other is not row and other.family == row.family]
    if not able or not row.items:
        return None
    reference = min(able, key=lambda other: _distance(row, other))
    shared = sorted(row.items.keys() & reference.items.keys())
    tasks = tuple(_task(task, row.items[task], reference.items[task]) for task in shared)
    usable = [found.pairs for found in tasks if found.pairs]
    above = [pairs for pairs in usable if pairs.chance is not None]
    return Comparison(
        reference=reference,
        same_place=_same_place(row, reference),
        tasks=tasks,
        absent=tuple(sorted(reference.items.keys() - row.items.keys())),
        retention=retention(usable) if usable else _nothing(),
        corrected=chance_corrected_retention(above) if above else _unknown_chance(),
    )


def _same_place(row: Row, other: Row) -> bool:
    return row.cell.runtime == other.cell.runtime and row.cell.hardware == other.cell.hardware


def _distance(row: Row, other: Row) -> tuple[object, ...]:
    mine, theirs = row.cell, other.cell
    return (
        mine.runtime != theirs.runtime,
        mine.hardware != theirs.hardware,
        mine.seed != theirs.seed,
        other.runtime,
        theirs.hardware.name,
        theirs.seed,
        theirs.id,
    )


def _nothing() -> Estimate:
    return Estimate(None, None, 0, "no item was asked of both with the same prompt")


def _unknown_chance() -> Estimate:
    return Estimate(None, None, 0, "what guessing would score is not known")


def _task(task: Task, ours: Mapping[str, Item], theirs: Mapping[str, Item]) -> TaskComparison:
    found = pair(ours, theirs)
    return TaskComparison(
        task=task,
        pairs=found.pairs,
        missing=found.missing,
        extra=found.extra,
        unlike=found.unlike,
        retention=retention([found.pairs]) if found.pairs else _nothing(),
        corrected=chance_corrected_retention([found.pairs]) if found.pairs else _nothing(),
        difference=difference(found.pairs) if found.pairs else _nothing(),
    )
