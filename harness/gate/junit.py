"""A decision as JUnit XML, the form in which every build server shows results.

A test suite is one suite of one cell, a test case one finding in it, and one case more says what the suite was judged
to be. REGRESSED is a failure, NOT_COMPARABLE and MISSING are errors, INCONCLUSIVE is skipped, or a failure under
`strict`. A finding that is worse than its suite (a task that does not decide) is skipped and says so: a report is red
exactly when the gate's exit code is not zero.

Source: what the schema of the Jenkins plug-in xunit allows (junit-10.xsd): no count of skipped cases at the root,
properties at suites only. Durations are left out, for none is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree

from harness.gate.untrusted import SENTENCE, one_line
from harness.gate.verdict import Decision, Finding, Mismatch, Place, SuiteVerdict, Verdict, worst
from harness.gate.wording import (
    Suites,
    consequence,
    judged,
    mismatch_sentence,
    sentence,
    severity,
    suite_sentence,
)

Tag = Literal["failure", "error", "skipped"]
COUNTED: tuple[tuple[Tag, str], ...] = (("failure", "failures"), ("error", "errors"), ("skipped", "skipped"))


@dataclass
class _Group:
    """What was found for one suite of one cell."""

    place: Place
    suites: list[SuiteVerdict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        """What decides, or None where only findings are known."""
        return worst(one.verdict for one in self.suites) if self.suites else None


@dataclass(frozen=True)
class _Case:
    """A test case: its name, how it ended (None is passed) and why in a sentence."""

    name: str
    tag: Tag | None
    verdict: Verdict
    message: str


def junit(decision: Decision) -> str:
    """Gives a decision as JUnit XML."""
    root = ElementTree.Element("testsuites", name=one_line(f"gate: {decision.policy}"))
    groups, known = _groups(decision), Suites(decision.suites)
    suites = _unique(f"{group.place.suite}: {group.place.label}" for group in groups)
    # Build servers take what stands before the last point for a package.
    classes = _unique(f"{_pointless(group.place.suite)}.{_pointless(group.place.label)}" for group in groups)
    for group, suite, of in zip(groups, suites, classes, strict=True):
        _write(root, suite, of, _cases(group, known, strict=decision.strict), _properties(decision, group))
    root.set("tests", str(sum(1 for _ in root.iter("testcase"))))
    for tag, counted in COUNTED[:2]:
        root.set(counted, str(sum(1 for _ in root.iter(tag))))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _groups(decision: Decision) -> list[_Group]:
    found: dict[tuple[str, str, str], _Group] = {}

    def of(place: Place) -> _Group:
        return found.setdefault((place.label, place.suite, place.candidate), _Group(place))

    for suite in decision.suites:
        of(suite.place).suites.append(suite)
    for finding in decision.findings:
        of(finding.place).findings.append(finding)
    named: dict[tuple[str, str], list[Mismatch]] = {}
    for mismatch in decision.mismatches:
        named.setdefault((mismatch.label, mismatch.suite), []).append(mismatch)
    for (label, suite_name, _), group in found.items():
        group.mismatches += named.get((label, suite_name), [])
    return sorted(found.values(), key=lambda one: (severity(one.verdict or Verdict.NOT_JUDGED), str(one.place)))


def _cases(group: _Group, known: Suites, *, strict: bool) -> list[_Case]:
    cases = []
    for suite in group.suites:
        why = "; ".join(part for part in (suite_sentence(suite), *map(mismatch_sentence, group.mismatches)) if part)
        cases.append(_Case(f"suite: {judged(suite)}", _tag(suite.verdict, strict=strict), suite.verdict, why))
    for finding in group.findings:
        tag, message = _tag(finding.verdict, strict=strict), sentence(finding)
        if tag in ("failure", "error") and known.overrules(finding):
            tag, message = "skipped", f"does not decide its suite, which is {known.of(finding)}; {message}"
        place = finding.place
        name = " / ".join(part for part in (place.evaluation, place.task, place.metric) if part)
        cases.append(_Case(name, tag, finding.verdict, message))
    return cases


def _tag(verdict: Verdict, *, strict: bool) -> Tag | None:
    if verdict is Verdict.NON_INFERIOR:
        return None
    if verdict is Verdict.REGRESSED or (strict and verdict is Verdict.INCONCLUSIVE):
        return "failure"
    return "error" if verdict in (Verdict.NOT_COMPARABLE, Verdict.MISSING) else "skipped"


def _properties(decision: Decision, group: _Group) -> dict[str, str]:
    return {
        "verdict": str(group.verdict or ""),
        "candidate": group.place.candidate,
        "baseline_cell": group.place.baseline,
        "policy": decision.policy,
        "policy_id": decision.policy_id,
        "baseline": decision.baseline,
        "baseline_digest": decision.baseline_digest,
        "records": decision.records,
        "harness_version": decision.harness_version,
        "strict": str(decision.strict).lower(),
        "exit_code": f"{decision.exit_code}: {consequence(decision)}",
    }


def _write(root: ElementTree.Element, name: str, of: str, cases: Sequence[_Case], properties: dict[str, str]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=name, tests=str(len(cases)))
    for tag, counted in COUNTED:
        suite.set(counted, str(sum(case.tag == tag for case in cases)))
    known = ElementTree.SubElement(suite, "properties")
    for key, value in properties.items():
        ElementTree.SubElement(known, "property", name=key, value=one_line(value, most=SENTENCE))
    for case, unique in zip(cases, _unique(case.name for case in cases), strict=True):
        element = ElementTree.SubElement(suite, "testcase", classname=of, name=unique)
        told = one_line(f"{case.verdict}: {case.message}" if case.message else str(case.verdict), most=2 * SENTENCE)
        if case.tag is None:
            ElementTree.SubElement(element, "system-out").text = told
        else:
            ElementTree.SubElement(element, case.tag, type=str(case.verdict), message=told).text = told


def _pointless(text: str) -> str:
    return text.replace(".", "_")


def _unique(names: Iterable[str]) -> list[str]:
    """Gives names as one line each, with a number behind those that were given before."""
    used: set[str] = set()
    next_of: dict[str, int] = {}
    given = []
    for name in names:
        shown = made = one_line(name) or "(no name)"
        while made in used:
            next_of[shown] = next_of.get(shown, 1) + 1
            made = f"{shown} ({next_of[shown]})"
        used.add(made)
        given.append(made)
    return given
