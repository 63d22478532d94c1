"""An estimate for each measure, as cells of a table and as flat rows: what all questions about variants share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.reporters.export import Flat
from harness.reporters.text import NOTHING, count, table
from harness.reporters.variants import MEASURES, SCORE, Aligned, Measure, Variant, aligned
from harness.statistics.paired import Estimate

WORDS = ("Stage (bold)", "Stages (bold)", "Pipeline", "Floor", "Teacher", "Why not", "Against", "Size class", "Best")


@dataclass(frozen=True)
class Finding:
    """An estimate over some seeds and tasks."""

    estimate: Estimate
    seeds: tuple[int, ...]
    tasks: int


class Question(Protocol):
    """Something asked of several variants; the last one is what it is about."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants, in the order in which `answer` takes their columns."""

    def answer(self, shared: Aligned, measure: Measure) -> Estimate | None:
        """Gives the estimate, or None where the measure cannot answer."""


def find(question: Question, measure: Measure, *, seed: int | None = None) -> Finding | None:
    """Answers a question over the shared seeds, or under one of them; None when no item was answered by all."""
    chosen = [variant if seed is None else variant.at(seed) for variant in question.variants]
    shared = aligned(chosen, measure)
    found = question.answer(shared, measure) if shared else None
    return Finding(found, shared.seeds, len(shared.tasks)) if shared and found else None


def cells(question: Question, show: Callable[[Estimate], str]) -> dict[str, str]:
    """Gives a column a measure, the items and the seeds; nothing where no measure has an answer."""
    found = {measure: finding for measure in MEASURES if (finding := find(question, measure))}
    if not found:
        return {}
    return {
        **{measure.name: show(found[measure].estimate) if measure in found else NOTHING for measure in MEASURES},
        "Items": _once(_items(measure, finding) for measure, finding in found.items()),
        "Seeds": _once(str(len(finding.seeds)) for finding in found.values()),
    }


def _items(measure: Measure, finding: Finding) -> str:
    return f"{finding.estimate.n:,}" if measure is SCORE else count(finding.estimate.n, "window")


def _once(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Gives a table without the columns of measures that no row has."""
    empty = {measure.name for measure in MEASURES if all(row.get(measure.name, NOTHING) == NOTHING for row in rows)}
    return table([{key: value for key, value in row.items() if key not in empty} for row in rows], left=WORDS)


def signed(found: Estimate) -> str:
    """Gives a difference with its interval, a sign, and as many digits as the interval supports."""
    if found.value is None:
        return NOTHING
    if found.interval is None:
        return f"{found.value:+.3g}"
    width = found.interval.high - found.interval.low
    digits = 2 if width >= 0.2 else 3 if width >= 0.02 else 4 if width >= 0.002 else 6
    while digits < 6 and any(end != 0 and round(end, digits) == 0 for end in (found.interval.low, found.interval.high)):
        digits += 1
    return f"{found.value:+.{digits}f} [{found.interval.low:+.{digits}f}, {found.interval.high:+.{digits}f}]"


def flat(question: Question, told: Flat) -> Iterator[Flat]:
    """Yields a row a measure for all shared seeds together and, where there are several, for each."""
    for measure in MEASURES:
        whole = find(question, measure)
        if whole is None:
            continue
        yield _flat(question, told, measure, whole)
        for seed in whole.seeds if len(whole.seeds) > 1 else ():
            alone = find(question, measure, seed=seed)
            assert alone is not None
            yield _flat(question, told, measure, alone)


def _flat(question: Question, told: Flat, measure: Measure, found: Finding) -> Flat:
    row, interval = question.variants[-1].row, found.estimate.interval
    return {
        **told,
        "family": row.family,
        "model": row.cell.model.source,
        "pipeline": row.label,
        "stages": " | ".join(map(str, row.cell.pipeline.stages)),
        "runtime": row.runtime,
        "hardware": row.cell.hardware.name,
        "seeds": " ".join(map(str, found.seeds)),
        "measure": measure.key,
        "higher_is_better": measure.higher_is_better,
        "tasks": found.tasks,
        "n": found.estimate.n,
        "value": found.estimate.value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "method": interval.method if interval else None,
        "note": found.estimate.reason,
    }
