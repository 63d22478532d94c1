"""Decisions made by hand and at random, with the names and texts that an attacker would choose."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from harness.gate.verdict import (
    WORST_FIRST,
    CellComparison,
    ChangedItem,
    Counts,
    Decision,
    Finding,
    Mismatch,
    Number,
    Place,
    Side,
    SuiteVerdict,
    Verdict,
    exit_code,
    worst,
)
from harness.record import Interval

NASTY = (
    "line\nbreak\r\n::error::x",
    "a | b || c \\| d \\",
    "<script>alert(1)</script><!-- & &amp; ]]> -->",
    "nul\0 bell\a escape\x1b[31m\x9b1m del\x7f",
    "👩‍👩‍👧 🏴‍☠️ 日本語 عربى",
    "over\u202eride \u2066iso\u2069 \ufeff \ufffe \u2028 \x85",
    "[red]bold[/red] [link=https://e.vil]x[/link]",
    "![x](https://e.vil) [a]: b @someone www.e.vil `code` $x$ ~~y~~ *z* _w_ #1",
    "``` fence ````",
    "::set-output name=a::b",
    "%0A%25,:",
    "- [ ] item",
    "1. one",
    "",
    "   ",
    "n" * 5000,
)


def number(value: float, low: float, high: float) -> Number:
    return Number(value=value, interval=Interval(low=low, high=high, method="by hand"))


def place(**given: str) -> Place:
    known = {"label": "lab / awq-4bit", "candidate": "c0", "baseline": "b0", "suite": "core", "task": "arc"}
    return Place(**(known | given))


def finding(verdict: Verdict, **given: object) -> Finding:
    """A task of 1,000 items: 600 right before, 585 after, 30 lost and 15 won."""
    known: dict[str, object] = {
        "place": place(),
        "kind": "accuracy",
        "verdict": verdict,
        "margin": 0.01,
        "counts": Counts(n=1000, won=15, lost=30),
        "baseline": 0.6,
        "candidate": 0.585,
        "difference": number(-0.015, -0.028, -0.002),
        "retention": number(0.975, 0.953, 0.997),
    }
    return Finding.model_validate(known | given)


def suite(verdict: Verdict, **given: object) -> SuiteVerdict:
    known: dict[str, object] = {"place": place(metric="accuracy", task=""), "verdict": verdict, "rule": "pooled"}
    return SuiteVerdict.model_validate(known | given)


def decision(
    suites: Sequence[SuiteVerdict], findings: Sequence[Finding] = (), *, strict: bool = False, **given: object
) -> Decision:
    found = [one.verdict for one in suites]
    known: dict[str, object] = {
        "policy": "nightly",
        "policy_id": "p0",
        "baseline": "main",
        "baseline_digest": "0123456789abcdef",
        "records": "results",
        "harness_version": "1",
        "verdict": worst(found),
        "exit_code": exit_code(found, strict=strict),
        "strict": strict,
        "suites": tuple(suites),
        "findings": tuple(findings),
    }
    return Decision.model_validate(known | given)


texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=60), st.sampled_from(["arc", "gsm8k", "core"]))
verdicts = st.sampled_from(WORST_FIRST)
shares = st.floats(min_value=-2, max_value=2)
probabilities = st.floats(min_value=0, max_value=1)


@st.composite
def numbers(draw: st.DrawFn) -> Number:
    low, value, high = sorted(draw(st.tuples(shares, shares, shares)))
    interval = draw(st.sampled_from([None, Interval(low=low, high=high, method="m")]))
    return Number(value=draw(st.sampled_from([None, value])), interval=interval, reason=draw(texts))


places = st.builds(Place, label=texts, candidate=texts, baseline=texts, suite=texts, task=texts, metric=texts)
counts = st.builds(
    Counts,
    n=st.integers(0, 10**6),
    won=st.none() | st.integers(0, 999),
    lost=st.none() | st.integers(0, 999),
    missing=st.integers(0, 9),
)
findings = st.builds(
    Finding,
    place=places,
    kind=st.sampled_from(["accuracy", "fidelity", "speed", "memory", "size"]),
    verdict=verdicts,
    critical=st.booleans(),
    harm=st.booleans(),
    scale=st.sampled_from(["retention", "difference", "ratio", "value"]),
    margin=st.none() | st.floats(0.001, 0.9),
    counts=st.none() | counts,
    baseline=st.none() | shares,
    candidate=st.none() | shares,
    unit=st.sampled_from(["score", "nats", "bytes", "tok/s", "1"]) | texts,
    difference=st.none() | numbers(),
    retention=st.none() | numbers(),
    ratio=st.none() | numbers(),
    p_accept=st.none() | probabilities,
    p_breach=st.none() | probabilities,
    p_adjusted=st.none() | probabilities,
    measured=st.none() | numbers(),
    alpha_accept=st.none() | st.just(0.05),
    alpha_breach=st.none() | st.floats(1e-9, 0.4),
    more_items=st.none() | st.integers(0, 10**7),
    towards=st.sampled_from([None, "accept", "breach"]),
    excess_flips=st.none() | shares,
    looks=st.integers(1, 5),
    reason=texts,
    notes=st.lists(texts, max_size=2).map(tuple),
)
mismatches = st.builds(
    Mismatch,
    label=texts,
    suite=texts,
    field=texts,
    baseline=texts,
    candidate=texts,
    hard=st.booleans(),
    remedy=texts,
)
suites = st.builds(
    SuiteVerdict,
    place=places,
    verdict=verdicts,
    rule=st.sampled_from(["pooled", "every_critical", "any"]),
    finding=st.none() | findings,
    reason=texts,
)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    return decision(
        draw(st.lists(suites, max_size=4)),
        draw(st.lists(findings, max_size=4)),
        strict=draw(st.booleans()),
        mismatches=tuple(draw(st.lists(mismatches, max_size=3))),
        warnings=tuple(draw(st.lists(texts, max_size=13))),
        policy=draw(texts),
        baseline=draw(texts),
        records=draw(texts),
    )


sides = st.builds(
    Side,
    label=texts,
    cell=texts,
    outcome=texts,
    bits_per_weight=st.none() | st.floats(0.5, 32),
    size_bytes=st.none() | st.integers(0, 10**12),
)
changed = st.builds(
    ChangedItem, task=texts, sample=texts, won=st.booleans(), baseline=texts, candidate=texts, target=texts,
    weight=st.just(1.0),
)  # fmt: skip
comparisons = st.builds(
    CellComparison,
    baseline=sides,
    candidate=sides,
    verdict=verdicts,
    suite=st.none() | suites,
    findings=st.lists(findings, max_size=3).map(tuple),
    mismatches=st.lists(mismatches, max_size=2).map(tuple),
    changed=st.lists(changed, max_size=3).map(tuple),
)
