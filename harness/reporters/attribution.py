"""What each stage did given the others, and what two stages do together beyond the sum of what each does alone.

Two pipelines that differ by one stage say what that stage did. Where both of two stages, either and neither were
measured, the difference of differences says whether their effects add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from harness.reporters.export import Flat
from harness.reporters.findings import cells, flat, signed, table_of
from harness.reporters.variants import Aligned, Group, Measure, Names, Variant, groups
from harness.spec import Use
from harness.statistics.attribution import Table, effect, interaction
from harness.statistics.paired import Estimate


@dataclass(frozen=True)
class Contrast:
    """Variants of one model, fewest stages first, and the positions in the last one's stages that are asked about."""

    what: str
    variants: tuple[Variant, ...]
    asked: frozenset[int]
    statistic: Callable[[Sequence[Table]], Estimate]

    @property
    def stages(self) -> tuple[Use, ...]:
        """The stages of the fullest variant."""
        return self.variants[-1].stages

    def answer(self, shared: Aligned, _: Measure) -> Estimate:
        """Gives the statistic of the shared items."""
        return self.statistic(shared.tasks)


def effects(group: Group) -> Iterator[Contrast]:
    """Yields every stage whose absence was measured; for want of one, all stages after the longest measured prefix."""
    for after in group.variants:
        count = len(after.stages)
        single = [step for index in range(count) if (step := _step(group, after, {index}))]
        tails = [step for start in range(count - 2, -1, -1) if (step := _step(group, after, range(start, count)))]
        yield from single or tails[:1]


def _step(group: Group, after: Variant, dropped: Collection[int]) -> Contrast | None:
    before = group.with_stages(_without(after.stages, dropped))
    return Contrast("effect", (before, after), frozenset(dropped), effect) if before else None


def interactions(group: Group) -> Iterator[Contrast]:
    """Yields every two stages of a pipeline of which both, either and neither were measured."""
    for both in group.variants:
        for one, other in combinations(range(len(both.stages)), 2):
            fewer = [group.with_stages(_without(both.stages, out)) for out in ({one, other}, {other}, {one})]
            known = tuple(variant for variant in fewer if variant)
            if len(known) == len(fewer):
                yield Contrast("interaction", (*known, both), frozenset({one, other}), interaction)


def _without(stages: Sequence[Use], positions: Collection[int]) -> list[Use]:
    return [stage for index, stage in enumerate(stages) if index not in positions]


def effect_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields a table of effects for each model and place."""
    told = list(_tables(found, names, effects, "Stage (bold)"))
    if told:
        yield (
            "What the bold stage changed, with everything else in its pipeline as it is: with minus without, on the "
            "same items, mean over tasks of the tasks' means, 95 % interval. A rise in KL or ln perplexity is a loss."
        )
        yield from told


def interaction_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields a table of interactions for each model and place."""
    told = list(_tables(found, names, interactions, "Stages (bold)"))
    if told:
        yield (
            "Both bold stages − only the first − only the second + neither. Where the interval holds 0 these items do "
            "not show that the two do anything together but add up; a score below 0, or a KL above, says that together "
            "they cost more than their sum."
        )
        yield from told


def _tables(
    found: Sequence[Variant], names: Names, contrasts: Callable[[Group], Iterator[Contrast]], heading: str
) -> Iterator[str]:
    for group in groups(found):
        rows = [
            {heading: names.stages(contrast.stages, strong=contrast.asked), **shown}
            for contrast in contrasts(group)
            if (shown := cells(contrast, signed))
        ]
        if rows:
            yield f"### {names.model(group.variants[0])}"
            yield table_of(rows)


def attribution_rows(found: Sequence[Variant]) -> list[Flat]:
    """Gives every effect and interaction as flat rows."""
    rows: list[Flat] = []
    for group in groups(found):
        for contrast in (*effects(group), *interactions(group)):
            asked = [stage for index, stage in enumerate(contrast.stages) if index in contrast.asked]
            given = _without(contrast.stages, contrast.asked)
            rows += flat(contrast, {"what": contrast.what, "asked": _joined(asked), "given": _joined(given)})
    return rows


def _joined(stages: Sequence[Use]) -> str:
    return " | ".join(map(str, stages))
