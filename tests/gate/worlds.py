"""Small worlds for the gate: a baseline and a candidate whose answers to right-or-wrong items are counted out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.gate.measured import Measured, measured
from harness.gate.policy import Policy, SuiteRule
from harness.record import Observation
from harness.spec import Suite, Use
from tests.reporters.world import TRANSFORMERS, FakeResults, answers, artifact, cell, identity, record

Outcomes = tuple[int, int, int, int]
"""Both right, only the candidate, only the baseline, neither."""


def scores(counts: Outcomes) -> tuple[list[float], list[float]]:
    """Gives the candidate's and the baseline's scores, mixed in an order that does not depend on the counts."""
    both, won, lost, neither = counts
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * won + [(0.0, 1.0)] * lost + [(0.0, 0.0)] * neither
    stride = next(step for step in range(len(pairs) // 2 + 1, 2 * len(pairs) + 2) if _coprime(step, len(pairs)))
    mixed = [pairs[index * stride % len(pairs)] for index in range(len(pairs))]
    return [own for own, _ in mixed], [other for _, other in mixed]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def side(
    tasks: Mapping[str, Sequence[float]],
    *,
    pipeline: str = "q4",
    changes: Mapping[str, object] | None = None,
    **more: object,
) -> Measured:
    """Gives one side with the given scores; `changes` are fields of the record, `more` of the cell."""
    rows = [row for task, values in tasks.items() for row in answers(task, values)]
    return sided(rows, pipeline=pipeline, changes=changes, **more)


def sided(
    rows: Sequence[Observation], *, pipeline: str = "q4", changes: Mapping[str, object] | None = None, **more: object
) -> Measured:
    """Gives one side with the given rows."""
    stages = () if pipeline == "reference" else (Use(use=f"quantize.{pipeline}"),)
    given = {"identity": identity(4), "artifact": artifact(), **(changes or {})}
    made = record(cell(pipeline, TRANSFORMERS, stages=stages, **more), rows, **given)
    results = FakeResults()
    results.add(made, rows)
    (found,) = measured(results)
    return found


def both(**tasks: Outcomes) -> tuple[Measured, Measured]:
    """Gives candidate and baseline whose items of each task come out as counted."""
    found = {task: scores(counts) for task, counts in tasks.items()}
    return side({task: own for task, (own, _) in found.items()}), side(
        {task: other for task, (_, other) in found.items()}
    )


def policy(**more: object) -> Policy:
    """Gives a policy with one rule for accuracy; fields of the rule and of the policy may be given."""
    rule = {name: more.pop(name) for name in list(more) if name in SuiteRule.model_fields and name != "suites"}
    return Policy(**{"name": "test", "suites": (SuiteRule(**rule),), **more})


def suite_in_part(index: int, count: int) -> Suite:
    """Gives the suite that asks the index-th of `count` parts."""
    return Suite(name="quickstart", version="1", evaluations=(Use(use="tasks.lm_eval", args={"part": [index, count]}),))
