"""Results files as lm-eval writes them, for tools that read those."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.evaluations.rows import column
from harness.exchange.quoting import fact, measured, quotable, slug, without_repeats, write_json
from harness.interfaces import Results
from harness.record import Metric, Observation, Record

EVALUATION = "tasks.lm_eval"
NO_FILTER = "none"
Table = dict[str, JsonValue]


@final
@dataclass(frozen=True)
class LmEvalResults:
    """Scores in the shape of lm-eval's `results_<time>.json`.

    Does:   writes `<cell>/results_<time>.json` for each cell with tasks of lm-eval: averages under `metric,filter`,
            standard errors where the rows give them (sample deviation over the root of n, as lm-eval's), versions,
            few-shot counts, directions and numbers of items as far as they are recorded.
    Needs:  nothing.
    Why:    leaderboards, tables and scripts that teams have read this file.
    Known:  items are not written. A metric that is no mean over items has `N/A` as its error, as in lm-eval.
    Source: EleutherAI lm-evaluation-harness 0.4.13, `result_schema.py`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def write(self, results: Results, out: Path) -> list[Path]:
        written = []
        for record in measured(results):
            metrics = [one for one in without_repeats(quotable(record)) if one.evaluation == EVALUATION]
            if metrics:
                time = record.started_at.replace(":", "-") or record.cell.id
                rows = [row for row in results.observations(record) if row.evaluation == EVALUATION]
                made = _results(record, metrics, rows)
                written.append(write_json(out / slug(record.cell) / f"results_{time}.json", made))
        return written


def _results(record: Record, metrics: Sequence[Metric], rows: Sequence[Observation]) -> Table:
    tasks = list(dict.fromkeys(one.task for one in metrics))
    asked = {str(use.args["task"]): use.args for use in record.cell.suite.evaluations if "task" in use.args}
    shots = {task: asked[task]["num_fewshot"] for task in tasks if "num_fewshot" in asked.get(task, {})}
    versions = {task: asked[task]["version"] for task in tasks if "version" in asked.get(task, {})}
    made: Table = {
        "results": {task: _averages(task, metrics, rows) for task in tasks},
        "group_subtasks": {},
        "configs": {task: _config(task, metrics, shots.get(task)) for task in tasks},
        "versions": versions,
        "n-shot": shots,
        "higher_is_better": {task: _directions(task, metrics) for task in tasks},
        "n-samples": {task: _counts(task, metrics, asked.get(task, {}).get("limit")) for task in tasks},
        "config": _run(record, asked),
        "git_hash": fact(record, "harness", "commit"),
        **_who(record),
    }
    if record.started_at:
        made["date"] = datetime.fromisoformat(record.started_at).timestamp()
    if "total" in record.seconds:
        made["total_evaluation_time_seconds"] = str(record.seconds["total"])
    return made


def _averages(task: str, metrics: Sequence[Metric], rows: Sequence[Observation]) -> Table:
    found: Table = {"name": task, "alias": task, "sample_len": max(one.n for one in metrics if one.task == task)}
    own = [row for row in rows if row.task == task]
    for one in metrics:
        if one.task == task:
            name, _, which = one.name.partition(",")
            found[f"{name},{which or NO_FILTER}"] = one.value
            found[f"{name}_stderr,{which or NO_FILTER}"] = _error(column(own, one.name))
    return found


def _error(values: Sequence[float]) -> float | str:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else "N/A"


def _directions(task: str, metrics: Sequence[Metric]) -> Table:
    return {one.name.partition(",")[0]: one.higher_is_better for one in metrics if one.task == task}


def _config(task: str, metrics: Sequence[Metric], shots: JsonValue) -> Table:
    names: Table = _directions(task, metrics)
    listed: list[JsonValue] = [{"metric": name, "higher_is_better": better} for name, better in names.items()]
    return {"task": task, "metric_list": listed, **({} if shots is None else {"num_fewshot": shots})}


def _counts(task: str, metrics: Sequence[Metric], limit: JsonValue) -> Table:
    n = max(one.n for one in metrics if one.task == task)
    # How many there are in all is known where nobody set a limit.
    return {**({"original": n} if limit is None else {}), "effective": n}


def _run(record: Record, asked: dict[str, dict[str, JsonValue]]) -> Table:
    cell = record.cell
    limits = [args.get("limit") for args in asked.values()]
    return {
        "model": cell.runtime.use.removeprefix("lm_eval:"),
        "model_args": {"pretrained": cell.model.source.partition(":")[2], **cell.model.args, **cell.runtime.args},
        **({"model_num_parameters": record.identity.parameters} if record.identity else {}),
        **({"model_revision": cell.model.revision} if cell.model.revision else {}),
        **({"device": cell.hardware.device} if cell.hardware.name != "not stated" else {}),
        "limit": limits[0] if limits and all(one == limits[0] for one in limits) else None,
    }


def _who(record: Record) -> Table:
    cell = record.cell
    name = cell.model.source.partition(":")[2]
    if cell.pipeline.stages:
        name = f"{name} ({cell.pipeline.name})"
    found: Table = {
        "model_source": cell.runtime.use.removeprefix("lm_eval:"),
        "model_name": name,
        "model_name_sanitized": slug(cell),
        "lm_eval_version": fact(record, "libraries", "lm-eval"),
        "transformers_version": fact(record, "libraries", "transformers"),
    }
    return {key: value for key, value in found.items() if value is not None}
