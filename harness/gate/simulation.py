"""Nights that never were: items flip by chance, and the gate judges them with the very functions it judges records by.

A stored task says how many items its reference answered and how many of them were right. For every candidate cell it is
drawn which items change sides. Where nothing is lost as many are won as are lost, in expectation: that is what noise
does, and it is what McNemar's test takes for granted. A loss of d points turns further right answers wrong, d of a
hundred items. What a baseline was pinned with is itself a draw where `pinned` says so.

Only the four counts of a task matter to tests of independent right-or-wrong items, so a night is a table of counts, and
a task's tests are remembered by them. From there on nothing is simulated: looks, Holm's correction over all numbers of
the night, verdicts, the suite's rule and the exit code are those of `accuracy.looked`, `trial`, `judge.by_rule` and
`verdict.exit_code`.

Known: flips are drawn independently of each other. Real noise falls on the same borderline items again and again, which
leaves the balance of won and lost as it is and makes nights alike. Items in clusters and graded scores are not drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.errors import SpecError
from harness.gate.accuracy import looked
from harness.gate.judge import by_rule
from harness.gate.measured import Measured
from harness.gate.policy import Policy, SuiteRule
from harness.gate.trial import Trial, corrected
from harness.gate.verdict import POOLED, Finding, Kind, Place, Verdict, exit_code
from harness.statistics.noninferiority import Counts, counted_loss_test

Looks = tuple[Counts, ...]
"""The four counts of a task at each look, all items so far."""


@dataclass(frozen=True)
class Stored:
    """A task's stored items: how many, and how many the reference has right."""

    name: str
    n: int
    right: int

    def __post_init__(self) -> None:
        assert 0 < self.right <= self.n

    def resized(self, n: int) -> Stored:
        """Gives the task with another number of items and the same share of right ones."""
        return Stored(self.name, n, max(1, round(n * self.right / self.n)))


@dataclass(frozen=True)
class Change:
    """What happens to the items: a share `flips`, as many won as lost; `lost` more of them; flips when it was `pinned`.

    `lost_of_right` is a further loss as a share of the right items, as a margin of retention is. A task that has fewer
    right or wrong items than half the flips would need flips less.
    """

    flips: float = 0.0
    lost: float = 0.0
    pinned: float = 0.0
    lost_of_right: float = 0.0

    def chances(self, task: Stored) -> tuple[float, float, float, float]:
        """Gives the chances that a right and a wrong item change sides, in the candidate and then in the baseline."""
        right, wrong = task.right / task.n, 1 - task.right / task.n
        lost = min(right, self.lost + self.lost_of_right * right)
        half = min(self.flips / 2, wrong, right - lost)
        again = min(self.pinned / 2, wrong, right)
        won = half / wrong if wrong else 0.0
        return min(1.0, (half + lost) / right), won, again / right, again / wrong if wrong else 0.0

    def shares(self, task: Stored) -> tuple[float, float, float, float]:
        """Gives the expected shares of items that both have right, only the candidate, only the baseline, neither."""
        right = task.right / task.n
        both, won, lost, neither = np.array(
            [right * one + (1 - right) * other for one, other in zip(*_kinds(self, task), strict=True)]
        ).tolist()
        return both, won, lost, neither


@dataclass(frozen=True)
class Night:
    """What a night judges: tasks in some cells, what happens to every cell's items, and what to one cell's besides.

    Of the cell that is `hurt` the first `hurt_tasks` are, or all.
    """

    tasks: tuple[Stored, ...]
    cells: int = 1
    change: Change = Change()
    hurt: Change | None = None
    hurt_tasks: int | None = None

    @property
    def items(self) -> int:
        """The items of a cell."""
        return sum(task.n for task in self.tasks)

    @property
    def numbers(self) -> int:
        """How many scores are tested: every task of every cell, and each cell's tasks together."""
        return self.cells * (len(self.tasks) + 1)

    def of(self, cell: int, task: int) -> Change:
        """Gives what happens to the items of a task in a cell."""
        spared = cell > 0 or (self.hurt_tasks is not None and task >= self.hurt_tasks)
        return self.change if self.hurt is None or spared else self.hurt


@dataclass(frozen=True)
class Bench:
    """One cell's numbers of one kind, before their verdicts."""

    rule: SuiteRule
    trials: Sequence[Trial]
    pooled: Trial | None = None


More = Callable[[np.random.Generator], Iterator[Bench]]
"""Draws what else a cell measures in a night."""


def accuracy_rule(policy: Policy) -> SuiteRule:
    """Gives the first rule for scores. Raises SpecError when the policy has none."""
    found = first_rule(policy, "accuracy")
    if found is None:
        raise SpecError("the policy judges no scores, so there is nothing to simulate", found=policy.name)
    return found


def first_rule(policy: Policy, kind: Kind) -> SuiteRule | None:
    """Gives the first rule for numbers of a kind, whatever suites it is for."""
    return next((rule for rule in policy.suites if rule.kind == kind), None)


def stored_tasks(side: Measured) -> tuple[list[Stored], list[str]]:
    """Gives the tasks of a side that can be simulated, and why others cannot."""
    tasks, others = list[Stored](), list[str]()
    for (_, name), items in side.items.items():
        scores = [item.score for item in items.values()]
        if not set(scores) <= {0.0, 1.0}:
            others.append(f"{name}: scores are not right or wrong")
        elif any(item.cluster is not None for item in items.values()):
            others.append(f"{name}: its items come in clusters")
        elif not sum(scores):
            others.append(f"{name}: the reference has nothing right")
        else:
            tasks.append(Stored(name, len(scores), round(sum(scores))))
    return tasks, others


def exit_codes(
    night: Night, policy: Policy, *, nights: int, generator: np.random.Generator, more: More | None = None
) -> Counter[int]:
    """Judges that many nights and gives how often each exit code came out; open nights count as 3 (`--strict`)."""
    memory = Memory(policy, accuracy_rule(policy), night.tasks)
    looks = memory.rule.looks
    cells = [
        [draw(task, night.of(cell, at), looks=looks, nights=nights, generator=generator) for at, task in _each(night)]
        for cell in range(night.cells)
    ]
    found: Counter[int] = Counter()
    for index in range(nights):
        benches = [memory.bench([task[index] for task in tasks]) for tasks in cells]
        if more is not None:
            benches += [bench for _ in range(night.cells) for bench in more(generator)]
        found[exit_of(benches, policy)] += 1
    return found


def exit_of(benches: Sequence[Bench], policy: Policy) -> int:
    """Gives the exit code of a night under `--strict`, as the gate finds it."""
    trials = [trial for bench in benches for trial in (*bench.trials, *([bench.pooled] if bench.pooled else []))]
    verdicts = iter(
        [
            trial.verdict(adjusted=adjusted, alpha=policy.alpha)
            for trial, adjusted in zip(trials, corrected(trials), strict=True)
        ]
    )
    suites = list[Verdict]()
    for bench in benches:
        own = [next(verdicts) for _ in bench.trials]
        critical = [verdict for trial, verdict in zip(bench.trials, own, strict=True) if trial.finding.critical]
        suites.append(by_rule(bench.rule, critical, next(verdicts) if bench.pooled else None))
    return exit_code(suites, strict=True)


def draw(
    task: Stored, change: Change, *, looks: int, nights: int, generator: np.random.Generator
) -> list[tuple[tuple[int, int, int, int], ...]]:
    """Gives a task's counts at each look (cumulative) of every night."""
    from_right, from_wrong = _kinds(change, task)
    counts_NK: npt.NDArray[np.int64] = np.zeros((nights, 4), dtype=np.int64)
    left_N, right_N = np.full(nights, task.n), np.full(nights, task.right)
    taken, found = 0, list[npt.NDArray[np.int64]]()
    for look in range(1, looks + 1):
        until = math.ceil(task.n * look / looks)
        # Items come in an order that knows nothing of their answers.
        here_N = generator.hypergeometric(right_N, left_N - right_N, until - taken) if looks > 1 else right_N
        counts_NK = counts_NK + generator.multinomial(here_N, from_right)
        counts_NK = counts_NK + generator.multinomial(until - taken - here_N, from_wrong)
        left_N, right_N, taken = left_N - (until - taken), right_N - here_N, until
        found.append(counts_NK)
    stacked = np.stack(found, axis=1).tolist()
    return [tuple((one[0], one[1], one[2], one[3]) for one in night) for night in stacked]


@dataclass(frozen=True)
class Memory:
    """Trials of tasks by their counts; within a scenario most come again."""

    policy: Policy
    rule: SuiteRule
    tasks: Sequence[Stored]
    known: dict[tuple[int, Looks], Trial] = field(default_factory=dict)

    def bench(self, counts: Sequence[Looks]) -> Bench:
        """Gives a cell's tasks, each alone and all together."""
        trials = [self._known(at, each) for at, each in enumerate(counts)]
        return Bench(self.rule, trials, self._trial(list(zip(*counts, strict=True)), self.rule.margin, POOLED, False))

    def _known(self, at: int, counts: Looks) -> Trial:
        if (at, counts) not in self.known:
            name = self.tasks[at].name
            margin, critical = self.rule.of_task(name)
            self.known[at, counts] = self._trial([(each,) for each in counts], margin, name, critical)
        return self.known[at, counts]

    def _trial(self, looks: Sequence[tuple[Counts, ...]], margin: float, name: str, critical: bool) -> Trial:
        tests = (
            counted_loss_test(each, margin=margin, scale=self.rule.scale) if all(map(sum, each)) else None
            for each in looks
        )
        found = looked(tests, looks=len(looks), accept=self.policy.alpha.accept)
        return Trial(_finding(name, critical), p_accept=found.p_accept, p_breach=found.p_breach)


def _finding(name: str, critical: bool) -> Finding:
    place = Place(label="simulated", candidate="", baseline="", suite="simulated", task=name)
    return Finding(place=place, kind="accuracy", verdict=Verdict.NOT_JUDGED, critical=critical)


def _kinds(change: Change, task: Stored) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gives the chances of the four kinds for an item that is right and for one that is wrong before anything flips."""
    lost, won, was_lost, was_won = change.chances(task)
    from_right = ((1 - lost) * (1 - was_lost), (1 - lost) * was_lost, lost * (1 - was_lost), lost * was_lost)
    from_wrong = (won * was_won, won * (1 - was_won), (1 - won) * was_won, (1 - won) * (1 - was_won))
    return from_right, from_wrong


def _each(night: Night) -> Iterator[tuple[int, Stored]]:
    return enumerate(night.tasks)
