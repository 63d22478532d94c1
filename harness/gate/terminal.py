"""A decision and a comparison for a terminal: the answer, then tables with the worst on top, then how to read them.

Everything is a `Text`, never markup, so a name cannot colour, link or blink. A table is drawn whole where there is
room; in a narrow terminal intervals move below their values. Returns what rich can print; prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from harness.gate import sheets
from harness.gate.numbers import NOTHING
from harness.gate.sheets import Sheet
from harness.gate.untrusted import SENTENCE, one_line, quiet
from harness.gate.verdict import CellComparison, ChangedItem, Decision, Finding, SuiteVerdict, Verdict
from harness.gate.wording import LEGEND, headline, severity, suite_sentence

STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.NOT_COMPARABLE: "bold magenta",
    Verdict.MISSING: "bold magenta",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.NON_INFERIOR: "green",
    Verdict.NOT_JUDGED: "dim",
}
UNBOUNDED = 100_000
"""Columns of a terminal in which everything fits."""
OUTPUT = 300
"""Characters of an output that are shown; Markdown shows more, with its lines."""


@dataclass(frozen=True)
class Fitted:
    """A sheet as a table that suits the width: whole, or with intervals below their values."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _table(self.sheet, stacked=False)
        needed = Measurement.get(console, options.update(max_width=UNBOUNDED), whole).maximum
        yield whole if needed <= options.max_width else _table(self.sheet, stacked=True)


def decision_view(decision: Decision) -> Group:
    """Gives a decision for a terminal."""
    return Group(
        _answer(decision.verdict, headline(decision)),
        *_titled(sheets.suites(decision).without("Judged")),
        *_by_suite(decision.suites, decision.findings),
        *_titled(sheets.trouble(decision.suites, decision.findings, decision.mismatches)),
        *_warnings(decision.warnings),
        *_legend(),
    )


def comparison_view(comparison: CellComparison) -> Group:
    """Gives a comparison for a terminal."""
    why = suite_sentence(comparison.suite) if comparison.suite else ""
    names = f"{comparison.candidate.label} against {comparison.baseline.label}"
    suites = [comparison.suite] if comparison.suite else []
    trouble = sheets.trouble(suites, comparison.findings, comparison.mismatches).without("Cell", "Suite")
    return Group(
        _answer(comparison.verdict, f"{names}: {why}" if why else names),
        *_titled(sheets.sides(comparison)),
        *_findings(comparison.findings),
        *_titled(trouble),
        *_changed(comparison.changed),
        *_legend(),
    )


def safe(text: str, *, most: int = SENTENCE, style: str = "") -> Text:
    """Gives text as one line that neither rich nor the terminal nor a build server's log obeys."""
    return Text(quiet(one_line(text, most=most)), style=style, overflow="fold")


def _answer(verdict: Verdict, told: str) -> Text:
    return Text.assemble((str(verdict), STYLES[verdict]), "  ", safe(told, most=2 * SENTENCE), ".")


def _titled(sheet: Sheet, title: str = "") -> Iterator[RenderableType]:
    if sheet.rows:
        yield Text()
        yield safe(title or sheet.title, style="bold underline")
        yield Fitted(sheet.without_empty())


def _by_suite(suites: Iterable[SuiteVerdict], findings: Iterable[Finding]) -> Iterator[RenderableType]:
    """Yields the findings of each suite of each cell under its name, the worst suite first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.place.label, one.place.suite), []).append(one)
    ranks = {(one.place.label, one.place.suite): severity(one.verdict) for one in suites}
    last = len(STYLES)
    for label, suite in sorted(groups, key=lambda key: (ranks.get(key, last), key)):
        yield from _findings(groups[label, suite], f"{label} / {suite}")


def _findings(findings: Sequence[Finding], title: str = "") -> Iterator[RenderableType]:
    scores = _narrowed(sheets.tasks(findings))
    yield from _titled(scores, title)
    measures = sheets.measures(findings).without("Cell", "Suite", "More items")
    apart = f"{title}: {measures.title.lower()}" if title and scores.rows else title
    yield from _titled(measures, apart)


def _narrowed(sheet: Sheet) -> Sheet:
    """Gives the table of tasks with what fits a terminal: no cell, suite and notes, and things that belong together.

    Both scores share a column, and harm stands with the verdict.
    """
    at = {column: index for index, column in enumerate(sheet.columns)}
    old, new, harm = at["Baseline"], at["Candidate"], at["Harm"]

    def cell(row: tuple[str, ...], index: int) -> str:
        if index == old:
            return f"{row[old]} → {row[new]}"
        return f"{row[0]} {row[harm]}".strip() if index == 0 else row[index]

    rows = tuple(tuple(cell(row, index) for index in range(len(row))) for row in sheet.rows)
    columns = tuple("Old → new" if index == old else column for index, column in enumerate(sheet.columns))
    return Sheet(sheet.title, sheet.plural, columns, sheet.words, rows).without(
        "Cell", "Suite", "Candidate", "Harm", "Notes"
    )


def _table(sheet: Sheet, *, stacked: bool) -> Table:
    gap = 1 if stacked and not sheet.words.issuperset(sheet.columns) else 2
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for column in sheet.columns:
        words = column in sheet.words
        header = _stacked(column) if stacked and not words else safe(column)
        whole = not words or column == "Verdict"
        made.add_column(header, justify="left" if words else "right", no_wrap=whole, overflow="fold")
    for row in sheet.rows:
        made.add_row(*(_cell(sheet, column, cell, stacked) for column, cell in zip(sheet.columns, row, strict=True)))
    return made


def _cell(sheet: Sheet, column: str, text: str, stacked: bool) -> Text:
    if column == "Verdict":
        return _verdict(text, stacked)
    return _stacked(text) if stacked and column not in sheet.words else safe(text)


def _verdict(text: str, stacked: bool) -> Text:
    """Gives a verdict in its colour; what stands behind it goes below it where columns are narrow."""
    verdict, _, harm = text.partition(" ")
    style = STYLES[Verdict(verdict)] if verdict in STYLES else ""
    shown = safe(verdict, style=style)
    return shown.append("\n" if stacked else " ").append(harm, style="yellow") if harm else shown


def _stacked(text: str) -> Text:
    """Gives a cell with what follows its number on a line of its own: an interval, a newer number, an aim."""
    shown = safe(text).plain
    for follows in ("[", "→ ", "to "):
        shown = shown.replace(f" {follows}", f"\n{follows}", 1)
    return Text(shown)


def _warnings(warnings: Sequence[str]) -> Iterator[RenderableType]:
    if warnings:
        yield Text()
        yield Text("Warnings", style="bold underline")
        yield from (Text.assemble("- ", safe(one)) for one in warnings)


def _changed(changed: Sequence[ChangedItem]) -> Iterator[RenderableType]:
    if not changed:
        return
    yield Text()
    yield Text("Items that tell most", style="bold underline")
    for one in changed:
        state, style = ("won", "green") if one.won else ("lost", "red")
        yield Text.assemble((f"{state:5}", style), safe(f"{one.task} / {one.sample}"))
        for name, text in (("target", one.target), ("baseline", one.baseline), ("candidate", one.candidate)):
            if text or name != "target":
                yield Text.assemble((f"     {name + ':':11}", "dim"), safe(text or NOTHING, most=OUTPUT))


def _legend() -> Iterator[RenderableType]:
    yield Text()
    yield Text("How to read this", style="bold underline")
    for title, text in LEGEND:
        yield Text.assemble((f"{title}. ", "bold dim"), (text, "dim"))
