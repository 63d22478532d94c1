"""How much of the way from a floor to its teacher a distilled student went.

The floor is the same pipeline without its distilling stages: what the student would be had nobody taught it. Where that
was not measured the floor is what guessing scores, which flatters the student, since it knew something before; the
table says which floor it was. For KL and perplexity the way goes downwards, and there is no guessing to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.reporters.export import Flat
from harness.reporters.findings import cells, find, flat, table_of
from harness.reporters.text import NOTHING, estimate, plain
from harness.reporters.variants import (
    MEASURES,
    SCORE,
    Aligned,
    Measure,
    Names,
    Variant,
    groups,
    kind,
    reference_of,
)
from harness.spec import REFERENCE, Need
from harness.statistics.attribution import Table, gap_closed
from harness.statistics.contrasts import Pairs
from harness.statistics.paired import Estimate, chance_corrected_retention

CHANCE = "guessing"


@dataclass(frozen=True)
class Gap:
    """A distilled student, its teacher, and its floor: the same pipeline without distilling, or None for guessing."""

    floor: Variant | None
    teacher: Variant
    student: Variant

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The floor where there is one, the teacher, and the student."""
        return (self.floor, self.teacher, self.student) if self.floor else (self.teacher, self.student)

    def answer(self, shared: Aligned, measure: Measure) -> Estimate | None:
        """Gives the share of the gap that was closed; None where guessing has no number."""
        if self.floor:
            return gap_closed([_ordered(task, measure) for task in shared.tasks])
        if measure is not SCORE:
            return None
        pairs = [
            Pairs(candidate=task.columns[1], reference=task.columns[0], chance=chance)
            for task, chance in zip(shared.tasks, shared.chances, strict=True)
        ]
        return chance_corrected_retention(pairs)

    @property
    def floor_name(self) -> str:
        """What the gap starts from."""
        return self.floor.row.label if self.floor else CHANCE


def _ordered(task: Table, measure: Measure) -> Table:
    """Gives the columns as `gap_closed` takes them: floor, student, teacher, higher is better."""
    floor, teacher, student = task.columns
    sign = 1.0 if measure.higher_is_better else -1.0
    return Table(tuple(tuple(sign * x for x in column) for column in (floor, student, teacher)), task.continuous)


def gaps(found: Sequence[Variant]) -> Iterator[Gap]:
    """Yields every distilled variant whose teacher was measured in the same place."""
    for group in groups(found):
        for student in group.variants:
            teacher = _teacher(student, found) if "distill" in student.kinds else None
            if teacher:
                taught = [stage for stage in student.stages if kind(stage) != "distill"]
                yield Gap(group.with_stages(taught), teacher, student)


def _teacher(student: Variant, found: Sequence[Variant]) -> Variant | None:
    """Gives the teacher that the last distilling stage names, or the family's reference; None if not measured."""
    named = [stage for stage in student.stages if kind(stage) == "distill"][-1].args.get("teacher")
    if not isinstance(named, dict):
        return reference_of(student, found)
    try:
        need = Need.model_validate({**named, "name": "teacher"})
    except ValueError:
        return None  # a distiller from another package may describe its teacher in words of its own
    return next((other for other in found if other.place == student.place and _is(other, need)), None)


def _is(variant: Variant, need: Need) -> bool:
    model = variant.model
    if need.source == REFERENCE:
        same = model.role == "reference"
    else:
        same = (model.source, model.revision, model.args) == (need.source, need.revision, need.args)
    return same and variant.row.cell.pipeline.stages == need.stages


def gap_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields one table of all gaps."""
    rows = [row for gap in gaps(found) if (row := _line(gap, names))]
    if rows:
        yield (
            "(student − floor) / (teacher − floor), 95 % interval: 0 is no better than the floor, 1 as good as the "
            f"teacher. The floor is the same pipeline without its distilling stages or, where that was not measured, "
            f"{CHANCE}. Absent where the gap itself may be zero."
        )
        yield table_of(rows)


def _line(gap: Gap, names: Names) -> dict[str, str] | None:
    shown = cells(gap, estimate)
    if not shown:
        return None
    found = {measure.name: find(gap, measure) for measure in MEASURES}
    reasons = [f"{name}: {seen.estimate.reason}" for name, seen in found.items() if seen and seen.estimate.reason]
    return {
        "Pipeline": names.pipeline(gap.student, names.stages(gap.student.stages)),
        "Floor": plain(gap.floor_name),
        "Teacher": plain(gap.teacher.row.label),
        **shown,
        "Why not": "; ".join(reasons) or NOTHING,
    }


def gap_rows(found: Sequence[Variant]) -> list[Flat]:
    """Gives every gap as flat rows."""
    rows: list[Flat] = []
    for gap in gaps(found):
        rows += flat(gap, {"what": "gap closed", "asked": gap.teacher.row.label, "given": gap.floor_name})
    return rows
