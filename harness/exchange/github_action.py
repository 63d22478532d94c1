"""Files for benchmark-action/github-action-benchmark, which draws numbers over commits and comments on changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.exchange.quoting import labels, measured, quotable, write_json
from harness.interfaces import Results
from harness.record import Metric, Record

FILES = {True: "bigger-is-better.json", False: "smaller-is-better.json"}


@final
@dataclass(frozen=True)
class GithubAction:
    """Metrics for github-action-benchmark.

    Does:   writes `bigger-is-better.json` for the action's tool `customBiggerIsBetter` and `smaller-is-better.json`
            for `customSmallerIsBetter`: an entry a metric with name, unit, value, range (half the interval's width)
            and the count in `extra`.
    Needs:  nothing.
    Why:    a chart over commits without another service.
    Known:  the action alerts on a ratio of values, whatever their interval; its alert is no verdict. An interval that
            is not symmetric is given by its ends in `extra`.
    Source: github.com/benchmark-action/github-action-benchmark, README, "Custom benchmarks".
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def write(self, results: Results, out: Path) -> list[Path]:
        records = measured(results)
        names = labels(records)
        written = []
        for is_bigger_better, file in FILES.items():
            entries: list[JsonValue] = [
                _entry(names[record.cell.id], record, metric)
                for record in records
                for metric in quotable(record)
                if metric.higher_is_better is is_bigger_better
            ]
            if entries:
                written.append(write_json(out / file, entries))
        return written


def _entry(label: str, record: Record, metric: Metric) -> dict[str, JsonValue]:
    parts = [part for part in (label, metric.evaluation, metric.task, metric.name) if part]
    entry: dict[str, JsonValue] = {"name": " / ".join(parts), "unit": metric.unit, "value": metric.value}
    extra = [f"n = {metric.n}", f"cell {record.cell.id}"]
    if metric.interval:
        low, high = metric.interval.low, metric.interval.high
        entry["range"] = f"± {(high - low) / 2:.3g}"
        extra.insert(1, f"{metric.interval.level:.0%} interval {low:.6g} to {high:.6g} ({metric.interval.method})")
    return {**entry, "extra": "\n".join(extra)}
