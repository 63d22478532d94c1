"""What a gate's values mean, in sentences: every writer says the same, each in its own form.

A sentence names the number first, then what it was held against, then what was proven. Text in it may come from
others: the writers make it safe where they put it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.gate import numbers
from harness.gate.verdict import (
    EXIT_GO,
    EXIT_INCONCLUSIVE,
    EXIT_NOT_COMPARABLE,
    EXIT_REGRESSED,
    EXIT_USAGE,
    POOLED,
    WORST_FIRST,
    Decision,
    Finding,
    Kind,
    Mismatch,
    Place,
    SuiteVerdict,
    Verdict,
    worst,
)

LEGEND = (
    (
        "Verdicts",
        "REGRESSED: the loss is proven to be above the margin. NOT_COMPARABLE: the two sides were not asked the same "
        "thing in the same way. MISSING: one side has no numbers. INCONCLUSIVE: neither is proven; more items would "
        "tell. NON_INFERIOR: the loss is proven to be below the margin. NOT_JUDGED: the policy has no rule for it, or "
        "it is a measure that can only fail and did not.",
    ),
    (
        "Columns",
        "Old is the baseline, new the candidate. Points are hundredths of a score, new less old. Kept is the share of "
        "the baseline's score that the candidate keeps. Won and lost are items that only the candidate or only the "
        "baseline got right. Brackets are confidence intervals. More items is how many would probably settle it.",
    ),
    (
        "Harm",
        "A loss that is proven to be above zero and not to be above the margin: worth knowing, no reason to fail.",
    ),
    (
        "Error rates",
        "Two, because the two mistakes cost differently. The policy's alpha.accept bounds how often a loss as large as "
        "the margin is waved through; its alpha.breach bounds how often a gate fails although nothing was lost, over "
        "all tasks and cells together.",
    ),
    (
        "Exit code",
        "The first that applies: 2 usage error, nothing was judged; 1 a proven regression, which nothing hides; 4 "
        "something could not be compared or was not measured; 3 something is inconclusive, only with strict; 0 go.",
    ),
)
"""A heading and a sentence or two for each thing that a reader may not know."""

TOWARDS = {"accept": "pass", "breach": "fail"}
HARM = "harm: a loss above zero is proven"
RULES = {"pooled": "all tasks together", "every_critical": "every critical task", "any": "the worst finding"}
_OF: dict[Kind, str] = {"accuracy": "score", "fidelity": "value", "speed": "speed", "memory": "memory", "size": "size"}
KINDS: tuple[Kind, ...] = ("accuracy", "fidelity", "speed", "memory", "size")


def consequence(decision: Decision) -> str:
    """Says what the exit code means here, in a sentence without its full stop."""
    if decision.exit_code == EXIT_GO:
        return _GO.get(decision.verdict, "go")
    return {
        EXIT_REGRESSED: "stop, a loss above the margin is proven",
        EXIT_USAGE: "nothing was judged, because of a usage error",
        EXIT_INCONCLUSIVE: "stop, since strict asks for proof and there are too few items for one",
        EXIT_NOT_COMPARABLE: "no answer, since something could not be compared or was not measured",
    }.get(decision.exit_code, "an exit code that this harness does not give")


_GO = {
    Verdict.NON_INFERIOR: "go, the loss is proven to be below the margin",
    Verdict.INCONCLUSIVE: "go, although there are too few items to prove that the loss is below the margin",
    Verdict.NOT_JUDGED: "go, but the policy has no rule for anything that was found",
}


def headline(decision: Decision) -> str:
    """Gives what follows the verdict in the first line: what to do, the exit code, and what was held against what."""
    digest = f" ({decision.baseline_digest[:12]})" if decision.baseline_digest else ""
    against = f"policy {decision.policy}, baseline {decision.baseline}{digest}"
    return f"{consequence(decision)}; exit code {decision.exit_code}; {against}"


def subject(place: Place) -> str:
    """Gives what was measured: the task, or else the metric; with both, where the metric is not the score.

    >>> subject(Place(label="", candidate="", baseline="", suite="", evaluation="e", task="t", metric="kl_mean"))
    't kl_mean'
    """
    if place.metric != "score":
        return f"{place.task} {place.metric}".strip()
    return place.task or place.evaluation or place.metric


def margin(finding: Finding) -> str:
    """Says how much loss is tolerated; nothing where the policy sets no bound."""
    if finding.margin is None:
        return ""
    if finding.scale == "difference":
        points = 100 * finding.margin
        return f"{points:.4g} point{'' if points == 1 else 's'}"
    if finding.scale == "value":
        return numbers.measured(finding.margin, finding.unit)
    return f"{numbers.percent(finding.margin)} of the baseline's {_OF[finding.kind]}"


def bound(finding: Finding, scale: str) -> float | None:
    """Gives the margin where it is one on that scale, so that no number is rounded across it."""
    return finding.margin if finding.scale == scale else None


def effect(finding: Finding) -> str:
    """Says what was seen: what was lost or gained, what was kept, and the items behind it."""
    told = []
    if finding.unit == "score":
        told.append(numbers.lost(finding.difference, margin=bound(finding, "difference")))
    if finding.retention is not None and finding.retention.value is not None:
        told.append(f"kept {numbers.kept(finding.retention, margin=bound(finding, 'retention'))}")
    if finding.ratio is not None and finding.ratio.value is not None:
        ratio = numbers.times(finding.ratio, margin=bound(finding, "ratio"))
        told.append(f"{ratio} of the baseline's {_OF[finding.kind]}")
    if not any(told) and finding.candidate is not None:
        told.append(value(finding))
        if finding.baseline is not None:
            told.append(f"baseline {numbers.measured(finding.baseline, finding.unit)}")
    told.append(numbers.flips(finding.counts))
    return ", ".join(part for part in told if part)


def value(finding: Finding) -> str:
    """Gives the candidate's number, with its interval where it has one."""
    if finding.measured is not None:
        return numbers.in_unit(finding.measured, finding.unit, limit=bound(finding, "value"))
    return numbers.measured(finding.candidate, finding.unit)


def proof(finding: Finding) -> str:
    """Says what the numbers prove about the margin, with the p-value and what it was held against."""
    of = f"the {'limit' if finding.scale == 'value' else 'margin'}"
    tolerated = margin(finding)
    words = {
        Verdict.REGRESSED: "beyond",
        Verdict.NON_INFERIOR: "within",
        Verdict.INCONCLUSIVE: "open whether within",
    }
    if finding.verdict not in words:
        return ""
    p = evidence(finding)
    return f"{words[finding.verdict]} {of}{f' of {tolerated}' if tolerated else ''}{f' ({p})' if p else ''}"


def evidence(finding: Finding) -> str:
    """Gives the p-value that led to the verdict and what it was held against."""
    p, alpha = {
        Verdict.REGRESSED: (finding.p_adjusted, finding.alpha_breach),
        Verdict.NON_INFERIOR: (finding.p_accept, finding.alpha_accept),
    }.get(finding.verdict, (None, None))
    if p is None:
        return ""
    held = "" if alpha is None else f" against {numbers.small(alpha)}"
    return f"{numbers.p_value(p, against=alpha)}{held}"


def sentence(finding: Finding) -> str:
    """Says in one sentence what was found, what that proves and why, without the cell."""
    needs, harm = numbers.more_items(finding.more_items), HARM if is_harmed(finding) else ""
    if needs and finding.towards:
        needs = f"{needs} to {TOWARDS[finding.towards]}"
    parts = [effect(finding), proof(finding), needs, harm, finding.reason, *notes(finding)]
    return "; ".join(part for part in parts if part)


def is_harmed(finding: Finding) -> bool:
    """True where a loss is proven and not proven to be above the margin; a regression is more than a harm."""
    return finding.harm and finding.verdict is not Verdict.REGRESSED


def suite_sentence(suite: SuiteVerdict) -> str:
    """Says what decided a suite."""
    pooled = "" if suite.finding is None else sentence(suite.finding)
    return "; ".join(part for part in (suite.reason, f"{RULES['pooled']}: {pooled}" if pooled else "") if part)


def judged(suite: SuiteVerdict) -> str:
    """Says which kind of number was judged, where that is known, and how."""
    kind = kind_of(suite)
    return f"{kind}, {RULES[suite.rule]}" if kind else RULES[suite.rule]


def kind_of(suite: SuiteVerdict) -> Kind | None:
    """Gives the kind of number that a suite's verdict is about; one suite of one cell has a verdict for each."""
    return next((kind for kind in KINDS if kind == suite.place.metric), None)


class Suites:
    """The verdicts of suites, to be asked which of them a finding belongs to."""

    def __init__(self, suites: Iterable[SuiteVerdict]) -> None:
        self._found: dict[tuple[str, str, str, Kind | None], Verdict] = {}
        for one in suites:
            key = (one.place.label, one.place.suite, one.place.candidate, kind_of(one))
            self._found[key] = worst([one.verdict, self._found.get(key, Verdict.NOT_JUDGED)])

    def of(self, finding: Finding) -> Verdict | None:
        """Gives the verdict that a finding was put into, or None."""
        place = finding.place
        key = place.label, place.suite, place.candidate
        return self._found.get((*key, finding.kind), self._found.get((*key, None)))

    def overrules(self, finding: Finding) -> bool:
        """True when a finding is worse than what its suite was judged to be: then it does not decide."""
        of_suite = self.of(finding)
        return of_suite is not None and severity(finding.verdict) < severity(of_suite)


def notes(finding: Finding) -> list[str]:
    """Gives what else belongs to a finding: whether it counts, its looks, flips beyond noise, absent intervals."""
    told = []
    if not finding.critical and finding.place.task != POOLED:
        told.append("not critical")
    if finding.looks > 1:
        told.append(f"look {finding.look} of {finding.looks}")
    if finding.corrected is not None and finding.corrected.value is not None:
        told.append(f"above chance kept {numbers.kept(finding.corrected)}")
    if finding.excess_flips is not None:
        told.append(f"answers changed beyond noise: {numbers.percent(finding.excess_flips)}")
    told += _unpaired(finding)
    told += [
        number.reason
        for number in (finding.difference, finding.retention, finding.ratio)
        if number is not None and number.reason
    ]
    return [note for note in dict.fromkeys([*told, *finding.notes]) if note != finding.reason]


def _unpaired(finding: Finding) -> Iterator[str]:
    if finding.counts is None:
        return
    for count, what in (
        (finding.counts.missing, "only the baseline answered"),
        (finding.counts.extra, "only the candidate answered"),
        (finding.counts.unlike, "were asked with other prompts"),
    ):
        if count:
            yield f"{count:,} items {what}"


def difference(mismatch: Mismatch) -> str:
    """Says how two sides differ in a field."""
    return f"baseline {mismatch.baseline or 'nothing'}, candidate {mismatch.candidate or 'nothing'}"


def mismatch_sentence(mismatch: Mismatch) -> str:
    """Says in which field two sides differ, how, and what to do."""
    return f"{mismatch.field}: {difference(mismatch)}{f' -> {mismatch.remedy}' if mismatch.remedy else ''}"


def severity(verdict: Verdict) -> int:
    """Gives a verdict's place among all, 0 for the worst."""
    return WORST_FIRST.index(verdict)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Gives findings by verdict, critical ones first, then those with harm, then the strongest evidence of loss."""
    return sorted(
        findings,
        key=lambda one: (
            severity(one.verdict),
            not one.critical,
            not is_harmed(one),
            1.0 if one.p_breach is None else one.p_breach,
            str(one.place),
        ),
    )


def worst_suites_first(suites: Iterable[SuiteVerdict]) -> list[SuiteVerdict]:
    """Gives suites by verdict, then by name."""
    return sorted(suites, key=lambda one: (severity(one.verdict), one.place.label, one.place.suite))
