"""The tables of a decision and of a comparison as plain rows, before Markdown or a terminal draws them.

What a reader asks first stands first: the worst verdicts at the top, in the first column. A column of words may be
broken over lines, one of numbers not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.gate import numbers
from harness.gate.numbers import NOTHING
from harness.gate.verdict import WORST_FIRST, CellComparison, Decision, Finding, Mismatch, Side, SuiteVerdict, Verdict
from harness.gate.wording import (
    TOWARDS,
    bound,
    difference,
    evidence,
    is_harmed,
    judged,
    kind_of,
    margin,
    notes,
    proof,
    subject,
    suite_sentence,
    value,
    worst_first,
    worst_suites_first,
)

RUNNING = ("speed", "memory", "size")


@dataclass(frozen=True)
class Sheet:
    """A table: a title, what its rows are called, the columns, those that hold words, and the rows.

    Every row has as many cells as there are columns.
    """

    title: str
    plural: str
    columns: tuple[str, ...]
    words: frozenset[str]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)

    def without(self, *columns: str) -> Sheet:
        """Gives the table without some of its columns."""
        kept = [index for index, column in enumerate(self.columns) if column not in columns]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return Sheet(self.title, self.plural, tuple(self.columns[index] for index in kept), self.words, rows)

    def without_empty(self) -> Sheet:
        """Gives the table without the columns in which nothing stands."""
        cells = {column: {row[index] for row in self.rows} for index, column in enumerate(self.columns)}
        return self.without(*(column for column, found in cells.items() if found <= {"", NOTHING}))


def suites(decision: Decision) -> Sheet:
    """Gives what was decided for every cell and suite."""
    counts = _counted(decision.findings)
    fields: dict[tuple[str, str], list[str]] = {}
    for one in decision.mismatches:
        if one.hard:
            fields.setdefault((one.label, one.suite), []).append(one.field)

    def why(one: SuiteVerdict) -> str:
        key = one.place.label, one.place.suite
        if one.verdict is Verdict.NOT_COMPARABLE and not one.reason and key in fields:
            return f"the two sides differ in {', '.join(fields[key])}"
        kind = kind_of(one)
        counted = counts.get((*key, kind), NOTHING)
        return suite_sentence(one) or (f"{kind}: {counted}" if kind else counted)

    rows = tuple(
        (str(one.verdict), one.place.label, one.place.suite, judged(one), why(one))
        for one in worst_suites_first(decision.suites)
    )
    columns = ("Verdict", "Cell", "Suite", "Judged", "What decided it")
    return Sheet("Cells and suites", "suites", columns, frozenset(columns), rows)


def _counted(findings: Iterable[Finding]) -> dict[tuple[str, str, str | None], str]:
    """Says for every cell, suite and kind, and for all kinds together, how many findings have which verdict."""
    found: dict[tuple[str, str, str | None], Counter[Verdict]] = {}
    for one in findings:
        for kind in (one.kind, None):
            found.setdefault((one.place.label, one.place.suite, kind), Counter())[one.verdict] += 1
    return {
        key: ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in WORST_FIRST if counts[verdict])
        for key, counts in found.items()
    }


def tasks(findings: Sequence[Finding]) -> Sheet:
    """Gives the findings about scores."""
    chosen = worst_first(one for one in findings if one.kind == "accuracy")
    names = _names(chosen)
    columns = (
        "Verdict",
        "Cell",
        "Suite",
        "Task",
        "Items",
        "Won / lost",
        "Baseline",
        "Candidate",
        numbers.headed("Points", (one.difference for one in chosen)),
        numbers.headed("Kept", (one.retention for one in chosen)),
        "Harm",
        "More items",
        "Notes",
    )
    words = frozenset(("Verdict", "Cell", "Suite", "Task", "Harm", "Notes"))
    rows = tuple(_task_row(one, name) for one, name in zip(chosen, names, strict=True))
    return Sheet("Tasks", "tasks", columns, words, rows)


def _task_row(one: Finding, name: str) -> tuple[str, ...]:
    counts = one.counts
    flips = NOTHING if counts is None or counts.won is None else f"{counts.won:,} / {counts.lost or 0:,}"
    return (
        str(one.verdict),
        one.place.label,
        one.place.suite,
        name,
        NOTHING if counts is None else f"{counts.n:,}",
        flips,
        numbers.measured(one.baseline, one.unit),
        numbers.measured(one.candidate, one.unit),
        numbers.points(one.difference, margin=bound(one, "difference")),
        numbers.kept(one.retention, margin=bound(one, "retention")),
        "harm" if is_harmed(one) else "",
        _needs(one),
        _told(one),
    )


def _names(chosen: Sequence[Finding]) -> list[str]:
    """Gives what was measured, with the evaluation where two of them ask a task of the same name."""
    asked: dict[str, set[str]] = {}
    for one in chosen:
        asked.setdefault(subject(one.place), set()).add(one.place.evaluation)
    return [
        name if len(asked[name]) == 1 else f"{one.place.evaluation} / {name}"
        for one in chosen
        for name in [subject(one.place)]
    ]


def measures(findings: Sequence[Finding]) -> Sheet:
    """Gives the findings about everything but scores: divergences, speed, memory, size."""
    chosen = worst_first(one for one in findings if one.kind != "accuracy")
    names = _names(chosen)
    columns = (
        "Verdict",
        "Cell",
        "Suite",
        "Measure",
        "Baseline",
        "Candidate",
        numbers.headed("Ratio", (one.ratio for one in chosen)),
        "Tolerated",
        "More items",
        "Notes",
    )
    words = frozenset(("Verdict", "Cell", "Suite", "Measure", "Tolerated", "Notes"))
    rows = tuple(
        (
            str(one.verdict),
            one.place.label,
            one.place.suite,
            name,
            numbers.measured(one.baseline, one.unit),
            value(one),
            _ratio(one),
            margin(one) or NOTHING,
            _needs(one),
            "; ".join(part for part in (evidence(one), one.reason, *notes(one)) if part),
        )
        for one, name in zip(chosen, names, strict=True)
    )
    return Sheet("Fidelity, speed, memory and size", "measures", columns, words, rows)


def _ratio(one: Finding) -> str:
    return numbers.times(one.ratio, margin=bound(one, "ratio"))


def _needs(one: Finding) -> str:
    if one.more_items is None:
        return ""
    return f"{one.more_items:,}{f' to {TOWARDS[one.towards]}' if one.towards else ''}"


def _told(one: Finding) -> str:
    return "; ".join(part for part in (proof(one), one.reason, *notes(one)) if part)


def trouble(suites: Iterable[SuiteVerdict], findings: Iterable[Finding], mismatches: Sequence[Mismatch]) -> Sheet:
    """Gives what could not be compared or was not measured, why, and what to do."""
    columns = ("Verdict", "Cell", "Suite", "Field or task", "Why", "What to do")
    rows = [*_of_mismatches(mismatches), *_absent(suites, findings, mismatches)]
    order = {str(Verdict.NOT_COMPARABLE): 0, str(Verdict.MISSING): 1}
    ordered = sorted(dict.fromkeys(rows), key=lambda row: (order.get(row[0], 2), row))
    return Sheet("Not comparable, missing or different", "entries", columns, frozenset(columns), tuple(ordered))


def _of_mismatches(mismatches: Iterable[Mismatch]) -> Iterator[tuple[str, ...]]:
    for one in mismatches:
        verdict = str(Verdict.NOT_COMPARABLE) if one.hard else TOLERATED
        yield verdict, one.label, one.suite, one.field, difference(one), one.remedy or NOTHING


TOLERATED = "differs"
"""Stands for a verdict where two sides differ in something that does not forbid to compare them."""


def _absent(
    suites: Iterable[SuiteVerdict], findings: Iterable[Finding], mismatches: Sequence[Mismatch]
) -> Iterator[tuple[str, ...]]:
    explained = {(one.label, one.suite) for one in mismatches if one.hard}
    remedies = {
        Verdict.MISSING: "measure what is missing, then ask again",
        Verdict.NOT_COMPARABLE: "measure both sides in the same way",
    }
    for one in suites:
        # A mismatch of the same suite already says why, field by field.
        if one.verdict is Verdict.NOT_COMPARABLE and (one.place.label, one.place.suite) in explained:
            continue
        if one.verdict in remedies:
            why = suite_sentence(one) or NOTHING
            yield str(one.verdict), one.place.label, one.place.suite, "all", why, remedies[one.verdict]
    for found in findings:
        if found.verdict in remedies:
            why = "; ".join(part for part in (found.reason, *notes(found)) if part) or NOTHING
            place = found.place
            yield str(found.verdict), place.label, place.suite, subject(place), why, remedies[found.verdict]


def sides(comparison: CellComparison) -> Sheet:
    """Gives both sides beside each other: what they are, weigh and how they ran."""
    old, new = comparison.baseline, comparison.candidate
    running = [one for one in comparison.findings if one.kind in RUNNING]
    columns = ("", "Baseline", "Candidate", numbers.headed("Ratio", (one.ratio for one in running)))
    rows = [
        ("Cell", old.label, new.label, ""),
        ("Outcome", old.outcome, new.outcome, ""),
        _weighed("Bits/weight", old.bits_per_weight, new.bits_per_weight),
        ("Size", numbers.size(old.size_bytes), numbers.size(new.size_bytes), _quotient(old, new)),
        *(
            (
                name,
                numbers.measured(one.baseline, one.unit),
                numbers.measured(one.candidate, one.unit),
                _ratio(one),
            )
            for one, name in zip(running, _names(running), strict=True)
        ),
    ]
    return Sheet("Side by side", "rows", columns, frozenset(columns[:3]), tuple(rows))


def _weighed(name: str, old: float | None, new: float | None) -> tuple[str, ...]:
    quotient = f"{new / old:.2f}×" if old and new is not None else NOTHING
    return name, numbers.number(old), numbers.number(new), quotient


def _quotient(old: Side, new: Side) -> str:
    return f"{new.size_bytes / old.size_bytes:.2f}×" if old.size_bytes and new.size_bytes is not None else NOTHING
