"""What a gate says: verdicts, the numbers behind each, and one decision with one exit code.

A finding is one number of one cell that was judged: a task's score, a divergence, a speed. It carries everything that
led to its verdict, so that the JSON of a decision can be argued with years later. A harm is a loss that is proven to
be above zero and not to be above the margin: worth knowing, no reason to fail.

Precedence of the exit code: a usage error (2) comes before anything is judged; then a proven regression (1), which no
crashed cell hides; then what could not be compared or was not measured (4); then what is open (3, under `strict`);
then go (0).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict

from harness.record import Interval
from harness.spec import Value

DECISION_SCHEMA = 1
POOLED = "all tasks together"
"""The task of the finding that a suite's tasks make together."""
EXIT_GO, EXIT_REGRESSED, EXIT_USAGE, EXIT_INCONCLUSIVE, EXIT_NOT_COMPARABLE = 0, 1, 2, 3, 4


FINITE = ConfigDict(allow_inf_nan=False)


class Verdict(StrEnum):
    """What is proven, at the policy's error rates, about the loss against its margin."""

    NON_INFERIOR = "NON_INFERIOR"
    """The loss is below the margin."""
    REGRESSED = "REGRESSED"
    """The loss is above the margin."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Neither: more items are needed."""
    NOT_COMPARABLE = "NOT_COMPARABLE"
    """The two sides were not asked the same thing in the same way."""
    MISSING = "MISSING"
    """One side has no numbers: the cell failed, timed out, was not run, or left items unanswered."""
    NOT_JUDGED = "NOT_JUDGED"
    """The policy has no rule for it, or it is a tier that can only reject and did not."""


WORST_FIRST = (
    Verdict.REGRESSED,
    Verdict.NOT_COMPARABLE,
    Verdict.MISSING,
    Verdict.INCONCLUSIVE,
    Verdict.NON_INFERIOR,
    Verdict.NOT_JUDGED,
)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Gives the verdict that decides among several; NOT_JUDGED for none."""
    return min(verdicts, key=WORST_FIRST.index, default=Verdict.NOT_JUDGED)


def exit_code(verdicts: Iterable[Verdict], *, strict: bool) -> int:
    """Gives the exit code of a decision, by the precedence above."""
    found = worst(verdicts)
    if found is Verdict.REGRESSED:
        return EXIT_REGRESSED
    if found in (Verdict.NOT_COMPARABLE, Verdict.MISSING):
        return EXIT_NOT_COMPARABLE
    return EXIT_INCONCLUSIVE if strict and found is Verdict.INCONCLUSIVE else EXIT_GO


class Number(Value):
    """A number with its interval; where either is absent, `reason` says why."""

    model_config = FINITE
    value: float | None = None
    interval: Interval | None = None
    reason: str = ""


Kind = Literal["accuracy", "fidelity", "speed", "memory", "size"]


class Place(Value):
    """Where a finding belongs: the candidate's cell in words and by id, its baseline's, and what was measured."""

    label: str
    candidate: str
    baseline: str
    suite: str
    evaluation: str = ""
    task: str = ""
    metric: str = "score"

    def __str__(self) -> str:
        return " / ".join(part for part in (self.label, self.evaluation, self.task, self.metric) if part)


class Counts(Value):
    """Items of one task: `n` paired ones, of right-or-wrong ones those `won` and `lost` by the candidate, and the rest.

    What could not be paired: `missing` only the baseline answered, `extra` only the candidate, `unlike` had other
    prompts.
    """

    n: int
    won: int | None = None
    lost: int | None = None
    missing: int = 0
    extra: int = 0
    unlike: int = 0


class Finding(Value):
    """One judged number.

    `margin` is the tolerated loss on `scale`: a share of the baseline's score (retention), points of score
    (difference), a share of the baseline's speed or bytes (ratio), or a limit in the metric's own unit (value); None
    where the policy shows a number and does not judge it.
    `p_accept` speaks against "the loss is at least the margin", `p_breach` against "at most the margin", `p_harm`
    against "at most zero", all after the looks that were taken; `p_adjusted` is `p_breach` after the correction for all
    numbers of the decision. `alpha_accept` and `alpha_breach` are what `p_accept` and `p_adjusted` were held against.
    `more_items` is how many more would probably settle it, `towards` acceptance or a breach. `measured` is the
    candidate's own number with its interval, where it has one beside its comparison.
    """

    model_config = FINITE
    place: Place
    kind: Kind
    verdict: Verdict
    critical: bool = True
    harm: bool = False
    scale: Literal["retention", "difference", "ratio", "value"] = "retention"
    margin: float | None = None
    counts: Counts | None = None
    baseline: float | None = None
    candidate: float | None = None
    unit: str = "score"
    difference: Number | None = None
    retention: Number | None = None
    corrected: Number | None = None
    ratio: Number | None = None
    measured: Number | None = None
    p_accept: float | None = None
    p_breach: float | None = None
    p_adjusted: float | None = None
    p_harm: float | None = None
    alpha_accept: float | None = None
    alpha_breach: float | None = None
    more_items: int | None = None
    towards: Literal["accept", "breach"] | None = None
    excess_flips: float | None = None
    look: int = 1
    looks: int = 1
    method: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


class Mismatch(Value):
    """A field in which two sides differ that should be alike; `hard` ones forbid the comparison."""

    label: str
    suite: str
    field: str
    baseline: str
    candidate: str
    hard: bool
    remedy: str = ""


class SuiteVerdict(Value):
    """What the numbers of one kind in a suite say together about one cell, by the policy's rule for it.

    The `metric` of its place is that kind.
    """

    place: Place
    verdict: Verdict
    rule: Literal["pooled", "every_critical", "any"]
    finding: Finding | None = None
    reason: str = ""


class Decision(Value):
    """All of a gate's answer. `verdict` is the worst of `suites`; `warnings` are sentences for a reader."""

    schema_version: int = DECISION_SCHEMA
    policy: str
    policy_id: str
    baseline: str
    baseline_digest: str
    records: str
    harness_version: str
    verdict: Verdict
    exit_code: int
    strict: bool
    suites: tuple[SuiteVerdict, ...]
    findings: tuple[Finding, ...]
    mismatches: tuple[Mismatch, ...] = ()
    warnings: tuple[str, ...] = ()


class ChangedItem(Value):
    """An item that the two sides answered differently, with both outputs; `weight` is how much it tells."""

    task: str
    sample: str
    won: bool
    baseline: str
    candidate: str
    target: str = ""
    weight: float


class Side(Value):
    """One side of a comparison in words: what it is, what it weighs and how it ran."""

    label: str
    cell: str
    outcome: str
    bits_per_weight: float | None = None
    size_bytes: int | None = None


class CellComparison(Value):
    """A candidate's cell beside a baseline's: findings of every task, fidelity, speed, memory and size.

    `changed` are the items that tell most, at most ten.
    """

    baseline: Side
    candidate: Side
    verdict: Verdict
    suite: SuiteVerdict | None
    findings: tuple[Finding, ...]
    mismatches: tuple[Mismatch, ...] = ()
    changed: tuple[ChangedItem, ...] = ()
