"""A self-test as Markdown: what a gate promises beside what it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.gate.planted import Planted
from harness.gate.scenarios import Group
from harness.gate.selftest import SelfTest, Simulated
from harness.gate.untrusted import SENTENCE, markdown

TITLES: dict[Group, str] = {
    "nothing lost": "Nights on which nothing was lost: false alarms",
    "margin lost": "Nights on which everything lost just what is tolerated",
    "lost": "Nights on which one cell lost something: how often it is found",
    "planned": "As many items as the planner names",
    "slower": "Nights of launches by turns",
}
FEW = 20
"""Of so few an upper bound says more than an interval."""
MET = {True: "met", False: "**missed**", None: "too few nights to say"}


def selftest_markdown(found: SelfTest) -> str:
    """Gives the whole self-test; processor times are left out, so that the same seed gives the same text."""
    return "\n".join(_lines(found)) + "\n"


def summary(one: Simulated) -> str:
    """Gives one kind of night in a line."""
    goal = f"; {one.goal}: {MET[one.met].strip('*')}" if one.goal else ""
    return f"{one.name}: {share(one.regressed, one.nights)} of {one.nights:,} nights exit 1{goal} ({one.cpu_s:.0f} s)"


def share(part: int, whole: int) -> str:
    """Gives a share in percent, with digits where it is small."""
    found = part / whole
    return f"{found:.3%}" if 0 < found < 0.01 else f"{found:.0%}" if part in (0, whole) else f"{found:.1%}"


def _lines(found: SelfTest) -> Iterator[str]:
    yield f"# The gate tests itself under the policy {markdown(found.policy, most=SENTENCE)}"
    yield ""
    verdict = f"missed: {'; '.join(found.missed)}" if found.missed else "no goal was missed"
    yield f"Simulated nights, seed {found.seed}: {verdict}. Exit 1 is a regression, 4 not comparable or missing, 3 open"
    yield "(with `--strict`; without it these nights exit with 0), 0 go."
    for group, title in TITLES.items():
        rows = [one for one in found.simulated if one.group == group]
        if rows:
            yield from ("", f"## {title}", "", *_table(rows))
    yield from ("", "## Series that lie", "", *_planted(found.series))
    if found.records:
        yield from ("", f"## Models that were really damaged, under the policy {found.records_policy}", "")
        yield from _planted(found.records)
    yield from ("", "## What was assumed", "", *(f"- {markdown(one, most=10 * SENTENCE)}" for one in found.assumptions))


def _table(rows: Sequence[Simulated]) -> Iterator[str]:
    yield "| Nights | Items a cell | Numbers a night | n | exit 1 | 95 % interval | exit 3 | exit 4 | exit 0 | Goal |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    for one in rows:
        goal = f"{one.goal}: {MET[one.met]}" if one.goal else ""
        interval = f"{one.caught.low:.1%} to {one.caught.high:.1%}"
        if one.regressed < FEW:
            interval = f"at most {one.at_most:.3%}"
        codes = (share(part, one.nights) for part in (one.inconclusive, one.not_comparable, one.go))
        items = f"{one.items:,}" if one.items is not None else ""
        caught = share(one.regressed, one.nights)
        cells = (one.name, items, str(one.numbers), f"{one.nights:,}", caught, interval, *codes, goal)
        yield f"| {' | '.join(cells)} |"


def _planted(rows: Sequence[Planted]) -> Iterator[str]:
    yield "| Planted | Verdict | Exit code | What the gate says | Goal |"
    yield "|---|---|---:|---|---|"
    for one in rows:
        goal = f"{one.goal}: {MET[one.met]}" if one.goal else ""
        told, name = (markdown(text, most=SENTENCE) for text in (one.told, one.name))
        yield f"| {name} | {one.verdict} | {one.exit_code} | {told} | {goal} |"
