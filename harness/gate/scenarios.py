"""The nights a gate is tested with: nothing lost, the margin lost, more than that, and slower by so much.

Two kinds have goals. Where nothing was lost and nothing is slower, at most `alpha.breach` of the nights may exit with
1, over all their numbers together; a false alarm in a thousand shows in twenty thousand nights. And a loss of three
points must be found on at least four of five nights when the items are as many as `power.items_to_breach` names.

The shipped tasks are the counts of the published quickstart: its reference on llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.gate.policy import Policy
from harness.gate.simulated_measures import Machine, Race
from harness.gate.simulation import Change, Night, Stored, accuracy_rule, first_rule
from harness.statistics.power import items_to_breach

NIGHTS = 20_000
POWER = 0.8
PUBLISHED = (
    Stored("offline_arithmetic", 100, 67),
    Stored("offline_arithmetic_write", 60, 26),
    Stored("offline_cloze", 40, 34),
    Stored("offline_functions", 60, 44),
    Stored("offline_geography", 200, 161),
    Stored("offline_instructions", 28, 9),
)
"""Items and right ones of the published quickstart's reference on llama.cpp."""
MANY = 1000
"""Items of a task in the larger night."""
FLIPS = 0.05
"""The share of items that change sides where nothing else is said; Q8_0 has 1.4 % in the published quickstart."""
LOST = 0.03
"""The loss that must be found."""

Group = Literal["nothing lost", "margin lost", "lost", "planned", "slower"]


@dataclass(frozen=True)
class Setup:
    """How large a self-test is and what it starts from."""

    nights: int = NIGHTS
    seed: int = 0
    tasks: tuple[Stored, ...] = PUBLISHED
    cells: int = 8

    @property
    def fewer(self) -> int:
        """The nights for what is not rare: a tenth, but 200 where there are as many."""
        return min(self.nights, max(200, self.nights // 10))


@dataclass(frozen=True)
class Scenario:
    """Nights of one kind, and the share of them that must exit with 1, at most or at least.

    In `whole` nights fidelity and speed are judged beside the scores.
    """

    group: Group
    name: str
    night: Night | Race
    at_most: float | None = None
    at_least: float | None = None
    whole: bool = False

    @property
    def is_rare(self) -> bool:
        """True when an exit code of 1 should be so rare that only many nights tell how rare."""
        return self.at_most is not None or self.group == "margin lost"


def scenarios(policy: Policy, setup: Setup) -> list[Scenario]:
    """Gives all kinds of nights that a policy has rules for."""
    night = Night(setup.tasks, setup.cells)
    large = replace(night, tasks=tuple(task.resized(MANY) for task in setup.tasks))
    return [
        *_without_loss(policy, night, large),
        *_at_the_margin(policy, night, large),
        *_with_loss(night, large),
        *_as_planned(policy, night),
        *_slower(policy),
    ]


def _without_loss(policy: Policy, night: Night, large: Night) -> Iterator[Scenario]:
    alpha = policy.alpha.breach
    each = f"{MANY:,} items a task"
    for flips in (0.01, FLIPS, 0.1):
        name = f"{flips:.0%} of the items flip"
        yield Scenario("nothing lost", name, replace(night, change=Change(flips)), at_most=alpha)
    again = Change(FLIPS, pinned=FLIPS)
    name = f"{FLIPS:.0%} flip, and {FLIPS:.0%} had flipped in the baseline"
    yield Scenario("nothing lost", name, replace(night, change=again), at_most=alpha)
    for flips in (0.01, FLIPS):
        name = f"{flips:.0%} flip, {each}"
        yield Scenario("nothing lost", name, replace(large, change=Change(flips)), at_most=alpha)
    if first_rule(policy, "speed") or first_rule(policy, "fidelity"):
        whole = replace(night, cells=2, change=Change(FLIPS))
        name = f"{FLIPS:.0%} flip; fidelity and speed are judged too"
        yield Scenario("nothing lost", name, whole, at_most=alpha, whole=True)


def _at_the_margin(policy: Policy, night: Night, large: Night) -> Iterator[Scenario]:
    """Yields nights on which every task of every cell loses just what is tolerated: the tests' hardest case."""
    rule = accuracy_rule(policy)
    kind = "lost_of_right" if rule.scale == "retention" else "lost"
    change = Change(FLIPS, **{kind: rule.margin})
    for where, suffix in ((night, ""), (large, f", {MANY:,} items a task")):
        name = f"{FLIPS:.0%} flip, and every task of every cell loses its margin{suffix}"
        yield Scenario("margin lost", name, replace(where, change=change))


def _with_loss(night: Night, large: Night) -> Iterator[Scenario]:
    for points in (1, 2, 3, 5, 10, 20):
        hurt = Change(FLIPS, lost=points / 100)
        for where, suffix in ((night, ""), (large, f", {MANY:,} items a task")):
            one = replace(where, change=Change(FLIPS), hurt=hurt)
            yield Scenario("lost", f"{points} point{'s' if points > 1 else ''} lost by one cell{suffix}", one)


def _as_planned(policy: Policy, night: Night) -> Iterator[Scenario]:
    """Yields nights with as many items as the planner names for a loss in one task, and in all tasks of a cell."""
    hurt, same = Change(FLIPS, lost=LOST), Change(FLIPS)
    first = night.tasks[0]
    n = planned(policy, [first], hurt, tests=night.numbers)
    alone = (first.resized(n), *night.tasks[1:])
    yield Scenario(
        "planned",
        f"{100 * LOST:.0f} points lost by one task of {n:,} items",
        replace(night, tasks=alone, change=same, hurt=hurt, hurt_tasks=1),
        at_least=POWER,
    )
    n = planned(policy, night.tasks, hurt, tests=night.numbers)
    a_task = -(-n // len(night.tasks))
    every = tuple(task.resized(a_task) for task in night.tasks)
    name = f"{100 * LOST:.0f} points lost by all {len(every)} tasks of a cell, {a_task:,} items each"
    yield Scenario("planned", name, replace(night, tasks=every, change=same, hurt=hurt), at_least=POWER)


def planned(policy: Policy, tasks: Sequence[Stored], change: Change, *, tests: int) -> int:
    """Gives the items of these tasks together, as many of each, that show the loss above the margin in a night.

    What a margin of retention tolerates is that share of the reference's score.
    """
    rule = accuracy_rule(policy)
    margin = rule.margin if len(tasks) > 1 else rule.of_task(tasks[0].name)[0]
    shares = [change.shares(task) for task in tasks]
    right = sum(both + lost for both, _, lost, _ in shares) / len(tasks)
    tolerated = margin * right if rule.scale == "retention" else margin
    discordance = sum(won + lost for _, won, lost, _ in shares) / len(tasks)
    alpha = policy.alpha.breach
    return items_to_breach(discordance, excess=change.lost - tolerated, power=POWER, alpha=alpha, tests=tests)


def _slower(policy: Policy) -> Iterator[Scenario]:
    if first_rule(policy, "speed") is None:
        return
    for launch_sd in (0.01, 0.03):
        for slower in (0.0, 0.02, 0.05, 0.1):
            race = Race(2, Machine(launch_sd=launch_sd), slower)
            what = f"one cell is {slower:.0%} slower" if slower else "no cell is slower"
            goal = policy.alpha.breach if slower == 0 else None
            yield Scenario("slower", f"{what}, launches vary by {launch_sd:.0%}", race, at_most=goal)
