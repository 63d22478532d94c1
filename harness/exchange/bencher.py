"""Bencher Metric Format: what Bencher's `json` adapter reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.exchange.quoting import labels, measured, quotable, write_json
from harness.interfaces import Results
from harness.record import Metric
from harness.spec import digest

FILE = "bencher.json"
LONGEST_BENCHMARK, LONGEST_MEASURE = 1024, 64


@final
@dataclass(frozen=True)
class Bencher:
    """Metrics for Bencher's continuous benchmarking.

    Does:   writes `bencher.json`: a benchmark a cell and task, a measure a metric, with the ends of its interval as
            lower and upper value. `bencher run --adapter json --file bencher.json` takes it.
    Needs:  nothing.
    Why:    teams that watch numbers over time already have a place for them.
    Known:  Bencher knows neither units nor directions from this file; a threshold there is one-sided by its own
            setting. Names longer than Bencher allows (1024 and 64 characters) are cut and end in a hash.
    Source: Bencher Metric Format, bencher.dev/docs/reference/bencher-metric-format.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def write(self, results: Results, out: Path) -> list[Path]:
        records = measured(results)
        names = labels(records)
        found: dict[str, dict[str, JsonValue]] = {}
        for record in records:
            for metric in quotable(record):
                place = f"{names[record.cell.id]} / {metric.evaluation} / {metric.task}"
                measures = found.setdefault(_within(place, LONGEST_BENCHMARK), {})
                measures[_within(metric.name, LONGEST_MEASURE)] = _values(metric)
        return [write_json(out / FILE, dict(found))] if found else []


def _values(metric: Metric) -> dict[str, JsonValue]:
    interval = metric.interval
    return {"value": metric.value, **({"lower_value": interval.low, "upper_value": interval.high} if interval else {})}


def _within(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 17]}~{digest(name)}"
