"""Damage that a gate must see, planted and held against what it was made from.

Two kinds. Series that lie: the baseline's answers served once more by a cache, items that were dropped, a cell that was
not run. Those are made here, from a few rows, and go through the whole gate. And models that were damaged on purpose
(`plant.damage`, too few bits) or not at all (the bits they already had): those were measured, and each is judged
against the undamaged reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.gate.judge import Judgement, judge
from harness.gate.measured import measured
from harness.gate.policy import Policy
from harness.gate.simulated_measures import NAME, simulated_side
from harness.gate.simulation import Stored, accuracy_rule
from harness.gate.verdict import EXIT_GO, EXIT_NOT_COMPARABLE, SuiteVerdict, Verdict, exit_code, worst
from harness.interfaces import Results
from harness.record import Observation
from harness.spec import Value


class Planted(Value):
    """What was planted and what the gate said: verdict, exit code (open ones as with `--strict`), the reason it gave.

    `goal` says what had to come out and `met` whether it did, for what has a goal.
    """

    name: str
    verdict: Verdict
    exit_code: int
    told: str = ""
    goal: str = ""
    met: bool | None = None


def lying_series(policy: Policy, tasks: Sequence[Stored]) -> list[Planted]:
    """Judges series that lie, with the policy's rule for scores and nothing else."""
    rule = accuracy_rule(policy).model_copy(update={"suite": "*"})
    only = policy.model_copy(update={"suites": (rule,), "against": "cell"})
    baseline = simulated_side(rows=_rows(tasks), weights="baseline")
    first = tasks[0]
    too_many = int(policy.max_unanswered * first.n) + 1
    fewer = tasks[:-1]

    def asked(rows: tuple[Observation, ...] | None, *, weights: str = "candidate") -> Judgement:
        return judge([simulated_side(rows=rows, weights=weights)] if rows is not None else [], [baseline], only)

    return [
        _warned("yesterday's answers served again for other weights", asked(_rows(tasks)), True),
        _warned("other weights, answers that differ in the last digits", asked(_rows(tasks, shift=2.0**-40)), False),
        _warned("the very same weights and answers", asked(_rows(tasks), weights="baseline"), False),
        _missing(f"{too_many} of {first.n} items of a task are gone", asked(_rows(tasks)[too_many:])),
        *([_missing("a task is gone", asked(_rows(fewer)))] if len(tasks) > 1 else []),
        _missing("the cell was not run", asked(None)),
    ]


def _rows(tasks: Sequence[Stored], *, shift: float = 0.0) -> tuple[Observation, ...]:
    """Gives rows that are right as often as stored, with margins that have digits."""
    return tuple(
        Observation(
            evaluation=NAME,
            task=task.name,
            sample=f"{item:06}",
            values={"score": float(item < task.right), "margin": 0.125 + item / task.n + shift},
        )
        for task in tasks
        for item in range(task.n)
    )


def selftest_from_records(results: Results, policy: Policy) -> list[Planted]:
    """Judges every cell with stages against its family's reference, all in one night, and says what came of each."""
    against = policy.model_copy(update={"against": "reference"})
    sides = measured(results)
    judged = judge(sides, [side for side in sides if side.cell.is_reference], against)
    by_cell: dict[str, list[SuiteVerdict]] = {}
    for suite in judged.suites:
        by_cell.setdefault(suite.place.candidate, []).append(suite)
    found = []
    for side in sides:
        verdicts = by_cell.get(side.cell.id, [])
        if not side.cell.is_reference and verdicts:
            decided = worst(suite.verdict for suite in verdicts)
            told = [suite.reason for suite in verdicts if suite.verdict is decided and suite.reason]
            stages = " -> ".join(map(str, side.cell.pipeline.stages))
            found.append(
                Planted(
                    name=f"{side.cell.pipeline.name}: {stages}",
                    verdict=decided,
                    exit_code=exit_code([decided], strict=True),
                    told="; ".join(told),
                )
            )
    return found


def _warned(name: str, judged: Judgement, should: bool) -> Planted:
    verdict = worst(suite.verdict for suite in judged.suites)
    told = [one for one in judged.mismatches if one.field == "answers"]
    goal = "a warning that a cache may have served it" if should else "no such warning"
    return Planted(
        name=name,
        verdict=verdict,
        exit_code=exit_code([verdict], strict=False),
        told=f"answers are {told[0].candidate}" if told else "",
        goal=goal,
        met=bool(told) is should and exit_code([verdict], strict=False) == EXIT_GO,
    )


def _missing(name: str, judged: Judgement) -> Planted:
    verdict = worst(suite.verdict for suite in judged.suites)
    code = exit_code([verdict], strict=True)
    told = "; ".join(suite.reason for suite in judged.suites)
    goal = f"exit code {EXIT_NOT_COMPARABLE}"
    return Planted(name=name, verdict=verdict, exit_code=code, told=told, goal=goal, met=code == EXIT_NOT_COMPARABLE)
