"""What is kept of each suite: where one suite asks what a student was taught and another what it was not, apart.

A mean over everything hides what distillation is apt to do: keep what its corpus repeats and lose the rest. A matrix
that asks for two suites of tasks gets a column for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness.reporters.findings import WORDS
from harness.reporters.sections import REFERENCE
from harness.reporters.text import estimate, table
from harness.reporters.variants import SCORE, Names, Variant, aligned, reference_of
from harness.statistics.contrasts import Pairs
from harness.statistics.items import Task
from harness.statistics.paired import Estimate, retention


def suite_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields retention by suite; nothing unless at least two suites have tasks with a score."""
    suites = sorted({suite for variant in found for suite in _tasks(variant)})
    if len(suites) < 2:
        return
    yield (
        "Score over the reference's, paired on the same items, 95 % interval, the suites apart: "
        "the mean over all of them hides a student that keeps what it was taught and loses the rest."
    )
    yield table([_row(variant, found, suites, names) for variant in found], left=WORDS)


def _row(variant: Variant, found: Sequence[Variant], suites: Sequence[str], names: Names) -> dict[str, str]:
    reference = reference_of(variant, found)
    told = {
        f"{suite}, retention [95 %]": REFERENCE
        if variant.row.is_reference
        else estimate(suite_retention(variant, reference, suite))
        for suite in suites
    }
    return {"Pipeline": names.label(variant), **told}


def suite_retention(variant: Variant, reference: Variant | None, suite: str) -> Estimate | None:
    """Gives the share of the reference's score on one suite's tasks; None where nothing is shared."""
    tasks = _tasks(variant).get(suite)
    if reference is None or not tasks:
        return None
    shared = aligned([_only(variant, tasks), _only(reference, tasks)], SCORE)
    pairs = [Pairs(candidate=task.columns[0], reference=task.columns[1]) for task in (shared.tasks if shared else ())]
    return retention(pairs) if pairs else None


def _tasks(variant: Variant) -> Mapping[str, frozenset[Task]]:
    """Gives the tasks with a score of every suite that has some."""
    scored = {task for answers in variant.answers.values() for task in answers.get(SCORE, {})}
    found = {
        record.cell.suite.name: frozenset({(m.evaluation, m.task) for m in record.metrics} & scored)
        for row in variant.rows.values()
        for record in row.measured
    }
    return {suite: tasks for suite, tasks in found.items() if tasks}


def _only(variant: Variant, tasks: frozenset[Task]) -> Variant:
    """Gives the variant as if it had been asked these tasks alone."""
    kept = {
        seed: {**answers, SCORE: {task: items for task, items in answers.get(SCORE, {}).items() if task in tasks}}
        for seed, answers in variant.answers.items()
    }
    return replace(variant, answers=kept)
