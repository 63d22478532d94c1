"""A decision and a comparison as Markdown for a pull request, an issue or a job's summary.

The first line is the answer. Then come tables with the worst on top, what could not be compared, warnings, and a legend
for a reader who has never seen a gate. Whatever came from outside means nothing to Markdown: see `untrusted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.gate import sheets
from harness.gate.sheets import Sheet
from harness.gate.untrusted import NAME, OUTPUT, SENTENCE, fence, markdown, paragraph
from harness.gate.verdict import CellComparison, ChangedItem, Decision
from harness.gate.wording import LEGEND, headline, suite_sentence

LONG = frozenset(("What decided it", "Why", "What to do", "Notes"))
"""Columns that hold sentences; the others hold names and numbers."""


@dataclass(frozen=True)
class Section:
    """A part of a document: lines that belong together, then rows of which any number may be left out."""

    title: str
    plural: str
    head: tuple[str, ...]
    rows: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines."""
        return (*self.head, *self.rows)


def decision_markdown(decision: Decision) -> str:
    """Gives a decision as Markdown."""
    return joined(decision_sections(decision))


def decision_sections(decision: Decision) -> list[Section]:
    """Gives the parts of a decision: the answer first, the legend last."""
    answer = f"**{decision.verdict}**: {markdown(headline(decision), most=SENTENCE)}."
    told = [sheets.suites(decision), sheets.tasks(decision.findings), sheets.measures(decision.findings)]
    told.append(sheets.trouble(decision.suites, decision.findings, decision.mismatches))
    return [
        Section("answer", "lines", (answer,)),
        *_tables(told),
        *_warnings(decision.warnings),
        _legend(),
        Section("origin", "lines", (_origin(decision),)),
    ]


def comparison_markdown(comparison: CellComparison) -> str:
    """Gives a comparison as Markdown: both sides beside each other, every finding, the items that tell most."""
    names = f"{comparison.candidate.label} against {comparison.baseline.label}"
    why = suite_sentence(comparison.suite) if comparison.suite else ""
    suites = [comparison.suite] if comparison.suite else []
    told = [sheets.sides(comparison), sheets.tasks(comparison.findings), sheets.measures(comparison.findings)]
    told.append(sheets.trouble(suites, comparison.findings, comparison.mismatches))
    return joined(
        [
            Section("answer", "lines", (f"**{comparison.verdict}**: {markdown(names, most=SENTENCE)}{_after(why)}.",)),
            *_tables(sheet.without("Cell", "Suite") for sheet in told),
            *_changed(comparison.changed),
            _legend(),
        ]
    )


def joined(sections: Iterable[Section]) -> str:
    """Gives sections with an empty line between them."""
    return "\n\n".join("\n".join(section.lines) for section in sections) + "\n"


def _after(why: str) -> str:
    return f": {markdown(why, most=SENTENCE)}" if why else ""


def _tables(told: Iterable[Sheet]) -> Iterator[Section]:
    for sheet in told:
        if sheet.rows:
            sides = ["---" if column in sheet.words else "---:" for column in sheet.columns]
            head = (f"### {sheet.title}", "", _row(sheet, sheet.columns), f"| {' | '.join(sides)} |")
            yield Section(sheet.title, sheet.plural, head, tuple(_row(sheet, row) for row in sheet.rows))


def _row(sheet: Sheet, cells: Sequence[str]) -> str:
    shown = (
        markdown(cell, most=SENTENCE if column in LONG else NAME)
        for column, cell in zip(sheet.columns, cells, strict=True)
    )
    return f"| {' | '.join(shown)} |"


def _warnings(warnings: Sequence[str]) -> Iterator[Section]:
    if warnings:
        yield Section("Warnings", "warnings", ("### Warnings", ""), tuple(f"- {paragraph(one)}" for one in warnings))


def _legend() -> Section:
    lines = (f"- **{title}.** {markdown(text, most=len(text))}" for title, text in LEGEND)
    return Section("How to read this", "lines", ("### How to read this", "", *lines))


def _origin(decision: Decision) -> str:
    parts = (
        f"policy {decision.policy_id}" if decision.policy_id else "",
        f"baseline {decision.baseline_digest}" if decision.baseline_digest else "",
        f"records {decision.records}" if decision.records else "",
        f"harness {decision.harness_version}" if decision.harness_version else "",
        "strict" if decision.strict else "not strict",
    )
    return f"From {markdown('; '.join(part for part in parts if part), most=SENTENCE)}."


def _changed(changed: Sequence[ChangedItem]) -> Iterator[Section]:
    if not changed:
        return
    told = f"The items that tell most, at most ten; outputs are cut after {OUTPUT} characters."
    yield Section("Changed items", "items", ("### Changed items", "", told))
    for number, one in enumerate(changed, start=1):
        lines = [f"#### {number}. {'won' if one.won else 'lost'}: {markdown(f'{one.task} / {one.sample}')}"]
        for name, text in (("Target", one.target), ("Baseline", one.baseline), ("Candidate", one.candidate)):
            if text or name != "Target":
                lines += ["", f"{name}:", "", fence(text)]
        yield Section("Changed items", "items", tuple(lines))
