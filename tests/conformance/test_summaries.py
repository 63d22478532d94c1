"""Metrics are pure functions of rows: over every built-in evaluation that the published records hold."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import plugins
from harness.record import Observation, Record
from harness.spec import Use
from harness.store import Store
from harness.testing import check_summary

PUBLISHED = Path(__file__).parent.parent.parent / "results" / "published"
STORES = {folder.name: Store(folder) for folder in sorted(PUBLISHED.iterdir())}
RECORDS = {
    f"{name}: {record.cell}": (store, record)
    for name, store in STORES.items()
    for record in store.records
    if record.outcome.is_measured
}


def rows_of(use: Use, record: Record, rows: Sequence[Observation]) -> list[Observation]:
    """The rows that one evaluation of the suite wrote; a task evaluation owns the rows of its own task."""
    own = [row for row in rows if row.evaluation == use.use]
    return [row for row in own if row.task == use.args["task"]] if "task" in use.args else own


def test_the_published_records_hold_every_builtin_evaluation() -> None:
    found = {use.use for _, record in RECORDS.values() for use in record.cell.suite.evaluations}
    assert found == set(plugins.installed("evaluations"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_order_of_rows_changes_no_metric_and_the_stored_metrics_follow_from_the_rows(name: str) -> None:
    store, record = RECORDS[name]
    rows = store.observations(record)
    again = []
    for use in record.cell.suite.evaluations:
        own = rows_of(use, record, rows)
        assert own, use
        evaluation = plugins.evaluation(use)
        shuffled = random.Random(1).sample(own, len(own))
        check_summary([evaluation.summarize(own), evaluation.summarize(own[::-1]), evaluation.summarize(shuffled)])
        again.extend(evaluation.summarize(own))
    check_summary([tuple(again), record.metrics])
