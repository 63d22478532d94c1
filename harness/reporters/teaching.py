"""Whether a teacher was worth it: students taught in different ways, against the one that only read the text.

The control of every distillation is the same student trained on the same tokens without a teacher: hard labels, which
is `distill.logits` with kd_weight 0. What a distilled student has beyond the control is the teacher's; what the control
has beyond the untrained student is the text's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.reporters.export import Flat
from harness.reporters.findings import cells, flat, signed, table_of
from harness.reporters.text import plain
from harness.reporters.variants import Aligned, Measure, Names, Variant, kind, places
from harness.spec import Use
from harness.statistics.attribution import effect
from harness.statistics.paired import Estimate


@dataclass(frozen=True)
class Lesson:
    """Two variants that differ in their distilling stage alone, which read the same number of tokens."""

    control: Variant
    taught: Variant

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The control first, so that the difference is what the teacher gave."""
        return (self.control, self.taught)

    def answer(self, shared: Aligned, _: Measure) -> Estimate:
        """Gives taught - control."""
        return effect(shared.tasks)


def lessons(found: Sequence[Variant]) -> Iterator[Lesson]:
    """Yields every distilled variant with the control that read as many tokens."""
    for here in places(found):
        for control in here:
            if any(_reads_text_alone(stage) for stage in control.stages):
                for taught in here:
                    if _differ_in_teaching(control.stages, taught.stages):
                        yield Lesson(control, taught)


def _reads_text_alone(stage: Use) -> bool:
    return stage.use == "distill.logits" and stage.args.get("kd_weight") == 0


def _differ_in_teaching(control: Sequence[Use], taught: Sequence[Use]) -> bool:
    """True when one stage differs, a control on one side and a distiller with as many tokens on the other."""
    if len(control) != len(taught):
        return False
    unlike = [(one, other) for one, other in zip(control, taught, strict=True) if one != other]
    if len(unlike) != 1:
        return False
    text, teacher = unlike[0]
    is_pair = _reads_text_alone(text) and kind(teacher) == "distill" and not _reads_text_alone(teacher)
    return is_pair and text.args.get("tokens") == teacher.args.get("tokens")


def teaching_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields the difference that each way of teaching makes; nothing without a control."""
    told = [(lesson, shown) for lesson in lessons(found) if (shown := cells(lesson, signed))]
    if not told:
        return
    yield (
        "Each student minus the same student trained on as many tokens of the same text without a teacher (hard "
        "labels), on the same items, 95 % interval: a score above 0, or a KL below, is what the teacher gave."
    )
    yield table_of(
        [
            {"Pipeline": names.label(lesson.taught), "Against": plain(lesson.control.row.label), **shown}
            for lesson, shown in told
        ]
    )


def teaching_rows(found: Sequence[Variant]) -> list[Flat]:
    """Gives every pair as flat rows."""
    rows: list[Flat] = []
    for lesson in lessons(found):
        rows += flat(lesson, {"what": "teaching", "asked": "teacher", "given": lesson.control.row.label})
    return rows
