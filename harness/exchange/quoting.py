"""What other tools may quote from our records: metrics, names that are told apart, and files that are the same twice.

A record without numbers has nothing to quote. Where the weights were unpacked to run, scores are real and times and
memory are not: those of such records stay here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from harness.interfaces import Results
from harness.record import Metric, Outcome, Record
from harness.spec import Cell

PROBES = "probes."
PRIMARY = "score"


def measured(results: Results) -> list[Record]:
    """Gives the records that carry numbers."""
    return [record for record in results.records if record.outcome.is_measured]


def quotable(record: Record) -> list[Metric]:
    """Gives the metrics that may be quoted without the record."""
    is_emulated = record.outcome is Outcome.EMULATED
    return [one for one in record.metrics if not (is_emulated and one.evaluation.startswith(PROBES))]


def without_repeats(metrics: Sequence[Metric]) -> list[Metric]:
    """Leaves out a task's `score` where the metric it was taken from is there under its own name."""
    own = {(one.evaluation, one.task, one.value) for one in metrics if one.name != PRIMARY}
    return [one for one in metrics if one.name != PRIMARY or (one.evaluation, one.task, one.value) not in own]


def labels(records: Sequence[Record]) -> Mapping[str, str]:
    """Gives each cell's name by its id; cells of one name carry their ids."""
    names = {record.cell.id: str(record.cell) for record in records}
    times = Counter(names.values())
    return {cell: f"{name} [{cell}]" if times[name] > 1 else name for cell, name in names.items()}


def slug(cell: Cell) -> str:
    """Gives a name for files of a cell, as the store names its folder."""
    plain = "--".join((cell.model.family, cell.pipeline.name, cell.runtime.use))
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', plain)}--{cell.id}"


def write_json(file: Path, plain: JsonValue) -> Path:
    """Writes JSON; the same value gives the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def fact(record: Record, table: str, name: str) -> JsonValue:
    """Gives a fact of the machine, or None where the record has none."""
    found = record.machine.get(table)
    return found.get(name) if isinstance(found, dict) else None
