"""A decision for GitHub Actions: annotations on a run, and the summary of a job.

An annotation is a line on standard output, `::error title=...,file=...::message`. The runner undoes exactly this
escaping: `%`, carriage return and line feed everywhere, colon and comma in properties too (actions/toolkit,
packages/core/src/command.ts; actions/runner, ActionCommand.cs). GitHub shows ten errors and ten warnings of a step and
drops a summary of more than 1 MiB whole, so the worst come first and what is left out is counted.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from harness.gate.markdown import Section, decision_sections, joined
from harness.gate.untrusted import SENTENCE, one_line
from harness.gate.verdict import POOLED, Decision, Finding, SuiteVerdict, Verdict
from harness.gate.wording import (
    HARM,
    Suites,
    is_harmed,
    mismatch_sentence,
    sentence,
    severity,
    subject,
    suite_sentence,
    worst_first,
    worst_suites_first,
)

MOST = 10
"""Annotations of one kind that GitHub shows for a step."""
SUMMARY_BYTES = 1024 * 1024
"""The largest summary of a step that GitHub takes."""
NOTICE_BYTES = 1024
"""Room for the sentence that says what was cut."""
FAILING = (Verdict.REGRESSED, Verdict.NOT_COMPARABLE, Verdict.MISSING)

Level = Literal["error", "warning"]
LAST = len(Verdict)
Told = tuple[int, str, str]
"""How grave (0 is worst), a title and a message."""


def annotations(decision: Decision) -> list[str]:
    """Gives at most ten errors and ten warnings, a line each, the gravest first; the last counts those left out."""
    errors, warnings = _told(decision)
    return [*_lines("error", errors, decision.records), *_lines("warning", warnings, decision.records)]


def step_summary(decision: Decision, *, most: int = SUMMARY_BYTES) -> str:
    """Gives the decision's Markdown in at most so many bytes, cut between rows, with a sentence on what was cut."""
    sections = decision_sections(decision)
    whole = joined(sections)
    if _bytes(whole) <= most:
        return whole
    fixed = sum(_bytes("\n".join(one.head)) + 2 for one in sections)
    shown = _fitting(sections, most - fixed - NOTICE_BYTES)
    answer, *rest = (Section(one.title, one.plural, one.head, one.rows[: shown[one.title]]) for one in sections)
    return joined([answer, _notice(sections, shown, most), *(one for one in rest if one.rows or not shown[one.title])])


def _told(decision: Decision) -> tuple[list[Told], list[Told]]:
    """Gives what to annotate: errors for what makes the gate fail, warnings for what a reader should know."""
    errors: list[Told] = []
    warnings: list[Told] = []
    known: set[str] = set()
    for suite in worst_suites_first(decision.suites):
        if suite.verdict in FAILING or (decision.strict and suite.verdict is Verdict.INCONCLUSIVE):
            errors.append(_of_suite(suite, decision))
        elif suite.verdict is Verdict.INCONCLUSIVE:
            warnings.append(_of_suite(suite, decision))
            known.add(f"{suite.place.label} / {suite.place.suite}")
    suites = Suites(decision.suites)
    # A pooled finding is told with its suite.
    for finding in worst_first(one for one in decision.findings if one.place.task != POOLED):
        if finding.verdict in FAILING and not suites.overrules(finding):
            errors.append(_of_finding(finding))
        elif finding.verdict in FAILING or is_harmed(finding) or (_is_open(finding) and suites.of(finding) is None):
            warnings.append(_of_finding(finding))
            known.add(str(finding.place))
    tolerated = [one for one in decision.mismatches if not one.hard]
    warnings += [(LAST, f"differs: {one.label} / {one.suite}", mismatch_sentence(one)) for one in tolerated]
    # A warning opens with its subject; one that has an annotation with its numbers is not told twice.
    warnings += [(LAST, "gate", text) for text in decision.warnings if text.partition(": ")[0] not in known]
    return sorted(errors, key=_gravity), sorted(warnings, key=_gravity)


def _gravity(told: Told) -> int:
    return told[0]


def _is_open(finding: Finding) -> bool:
    return finding.verdict is Verdict.INCONCLUSIVE


def _of_suite(suite: SuiteVerdict, decision: Decision) -> Told:
    place = suite.place
    here = [one for one in decision.mismatches if one.hard and (one.label, one.suite) == (place.label, place.suite)]
    parts = [suite_sentence(suite), *map(mismatch_sentence, here[:3])]
    title = f"{suite.verdict}: {place.label} / {place.suite}"
    return severity(suite.verdict), title, "; ".join(part for part in parts if part)


def _of_finding(finding: Finding) -> Told:
    place = finding.place
    state = str(finding.verdict) if not is_harmed(finding) or finding.verdict in FAILING else HARM.partition(":")[0]
    title = f"{state}: {place.label} / {place.suite} / {subject(place)}"
    return severity(finding.verdict), title, sentence(finding)


def _lines(level: Level, told: Sequence[Told], file: str) -> Iterator[str]:
    shown = told if len(told) <= MOST else told[: MOST - 1]
    for _, title, message in shown:
        yield _command(level, title, message, file)
    if left := len(told) - len(shown):
        yield _command(
            level, f"{left:,} more", f"{left:,} more {level}s are not shown here: see the job's summary", file
        )


def _command(level: Level, title: str, message: str, file: str) -> str:
    properties = [f"title={_property(one_line(title))}"]
    if where := one_line(file, most=SENTENCE):
        properties.append(f"file={_property(where)}")
    # A command without a message is shown as nothing.
    return f"::{level} {','.join(properties)}::{_data(one_line(message, most=2 * SENTENCE) or one_line(title))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _bytes(text: str) -> int:
    return len(text.encode())


def _fitting(sections: Sequence[Section], room: int) -> dict[str, int]:
    """Gives how many rows of each section fit: small sections whole, the rest of the room shared by the large ones."""
    shown = {one.title: 0 for one in sections}
    sized = sorted(
        ((sum(_bytes(row) + 1 for row in one.rows), one) for one in sections if one.rows), key=lambda pair: pair[0]
    )
    for position, (_, one) in enumerate(sized):
        left = room // (len(sized) - position)
        for row in one.rows:
            if (taken := _bytes(row) + 1) > left:
                break
            left, room, shown[one.title] = left - taken, room - taken, shown[one.title] + 1
    return shown


def _notice(sections: Sequence[Section], shown: dict[str, int], most: int) -> Section:
    left = [
        f"{len(one.rows) - shown[one.title]:,} of {len(one.rows):,} {one.plural}"
        for one in sections
        if shown[one.title] < len(one.rows)
    ]
    told = f"**Cut to {most:,} bytes:** {', '.join(left)} are not shown, the least grave ones; the JSON holds all."
    return Section("cut", "lines", (told,))
