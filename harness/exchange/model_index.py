"""The `model-index` of a model card on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import yaml

from harness.exchange.quoting import PROBES, measured, quotable, slug, without_repeats
from harness.interfaces import Results
from harness.record import Metric, Outcome, Record

TASK_TYPE = "text-generation"


@final
@dataclass(frozen=True)
class ModelIndex:
    """Scores for the front matter of a model card.

    Does:   writes `<cell>.yaml` for each cell that has scores or fidelity: the key `model-index` with one entry a task,
            to be put between the `---` lines of the model's README.md.
    Needs:  nothing.
    Why:    a compressed model that is published should say what it lost where its readers look.
    Known:  the format has no place for intervals or counts. Data sets are named after our tasks, which need not be
            names of data sets on the hub. Times and memory are left out: they belong to a machine.
    Source: huggingface_hub 1.x, `repocard_data.py`; the hub's model card specification.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def write(self, results: Results, out: Path) -> list[Path]:
        written = []
        for record in measured(results):
            metrics = [one for one in without_repeats(quotable(record)) if not one.evaluation.startswith(PROBES)]
            if metrics:
                index = {"model-index": [{"name": _name(record), "results": list(_results(record, metrics))}]}
                out.mkdir(parents=True, exist_ok=True)
                file = out / f"{slug(record.cell)}.yaml"
                file.write_text(
                    yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=10_000), encoding="utf-8"
                )
                written.append(file)
        return written


def _name(record: Record) -> str:
    cell = record.cell
    name = cell.model.family if cell.is_reference else f"{cell.model.family} {cell.pipeline.name}"
    return f"{name} (emulated)" if record.outcome is Outcome.EMULATED else name


def _results(record: Record, metrics: list[Metric]) -> Iterator[dict[str, Any]]:
    shots = {str(use.args.get("task")): use.args.get("num_fewshot") for use in record.cell.suite.evaluations}
    for task in dict.fromkeys((one.evaluation, one.task) for one in metrics):
        name = task[1] or task[0]
        dataset: dict[str, Any] = {"name": name, "type": name}
        if shots.get(name) is not None:
            dataset["args"] = {"num_fewshot": shots[name]}
        yield {
            "task": {"type": TASK_TYPE, "name": task[0]},
            "dataset": dataset,
            "metrics": [
                {"type": one.name, "value": one.value, "name": f"{one.name} ({one.unit})"}
                for one in metrics
                if (one.evaluation, one.task) == task
            ],
        }
