"""Times as pytest-benchmark stores them, for `pytest-benchmark compare` and for what reads its files."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.exchange.quoting import PROBES, fact, labels, measured, write_json
from harness.interfaces import Results
from harness.record import Observation, Outcome, Record
from harness.spec import digest

FORMAT = "5.3.1"
"""The version of pytest-benchmark whose files these look like."""
NAME = "pytest-benchmark"


@final
@dataclass(frozen=True)
class PytestBenchmark:
    """Times of the probes for pytest-benchmark.

    Does:   writes `pytest-benchmark.json`, a benchmark for each cell, probe and time (`ttft_s`, `tpot_s`, ...) with
            every repetition; one file a machine where there are several. Cells of one group compare:
            `pytest-benchmark compare FILE`.
    Needs:  rows of `probes.*`.
    Why:    a table of times, and a history, with a tool that Python teams have.
    Known:  the numbers there take repetitions of one launch as independent, which they are not; our report and our
            gate do not. Records of emulated weights have no times to quote and are left out.
    Source: pytest-benchmark 5.3.1, `stats.py`; quartiles by its rule: methods 2 and 3 of Wikipedia's "Quartile".
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    def write(self, results: Results, out: Path) -> list[Path]:
        timed = [record for record in measured(results) if record.outcome is not Outcome.EMULATED]
        names = labels(timed)
        machines: dict[str, list[Record]] = {}
        for record in timed:
            machines.setdefault(digest(record.machine.get("hard")), []).append(record)
        written = {}
        for machine, records in machines.items():
            found = [made for record in records for made in _benchmarks(record, names, results.observations(record))]
            if found:
                written[machine] = (records, found)
        return [
            write_json(out / (f"{NAME}.json" if len(written) == 1 else f"{NAME}-{machine}.json"), _file(records, found))
            for machine, (records, found) in written.items()
        ]


def _file(records: Sequence[Record], benchmarks: list[JsonValue]) -> dict[str, JsonValue]:
    first = records[0]
    cpu: dict[str, JsonValue] = {
        "brand_raw": fact(first, "hard", "cpu_model"),
        "count": fact(first, "hard", "cpu_threads"),
    }
    info: dict[str, JsonValue] = {
        "machine": fact(first, "hard", "architecture"),
        "system": fact(first, "hard", "os"),
        "release": fact(first, "hard", "kernel"),
        "python_version": fact(first, "hard", "python"),
        "python_implementation": fact(first, "hard", "python_implementation"),
        "cpu": {key: value for key, value in cpu.items() if value is not None},
    }
    commit = fact(first, "harness", "commit")
    return {
        "machine_info": {key: value for key, value in info.items() if value is not None},
        "commit_info": {"id": commit or "unversioned", "dirty": bool(fact(first, "harness", "dirty"))},
        "benchmarks": benchmarks,
        "datetime": max(record.started_at for record in records),
        "version": FORMAT,
    }


def _benchmarks(record: Record, names: Mapping[str, str], rows: Sequence[Observation]) -> Iterator[JsonValue]:
    label = names[record.cell.id]
    for (evaluation, task, name), times_s in _times(rows).items():
        yield {
            "group": f"{evaluation} / {task} / {name}",
            "name": label,
            "fullname": f"{label} / {evaluation} / {task} / {name}",
            "params": None,
            "param": None,
            "extra_info": {"cell": record.cell.id, "evaluation": evaluation, "task": task, "time": name},
            "options": {},
            "stats": stats(times_s),
        }


def _times(rows: Sequence[Observation]) -> dict[tuple[str, str, str], list[float]]:
    """Gives every time of the probes by evaluation, task and name, in the order seen; warm-up runs are no times."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if row.evaluation.startswith(PROBES) and not row.task.startswith("warm-up"):
            for name, value in row.values.items():
                is_time = name.endswith("_s") and not name.endswith("_per_s")
                if is_time and isinstance(value, (int, float)) and value > 0:
                    found.setdefault((row.evaluation, row.task, name), []).append(float(value))
    return found


def stats(times_s: Sequence[float]) -> dict[str, JsonValue]:
    """Gives the statistics that pytest-benchmark stores, of at least one positive time."""
    data = sorted(times_s)
    n, mean = len(data), statistics.mean(times_s)
    spread = statistics.stdev(times_s) if n > 1 else 0
    q1, q3 = _quartile(data), -_quartile([-value for value in reversed(data)])
    reach = 1.5 * (q3 - q1)
    beyond_one = sum(not mean - spread <= value <= mean + spread for value in data)
    beyond_fence = sum(not q1 - reach <= value <= q3 + reach for value in data)
    return {
        "min": data[0],
        "max": data[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": n,
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond_fence,
        "stddev_outliers": beyond_one,
        "outliers": f"{beyond_one};{beyond_fence}",
        "ld15iqr": data[bisect_left(data, q1 - reach)],
        "hd15iqr": data[bisect_right(data, q3 + reach) - 1],
        "ops": n / sum(times_s),
        "total": sum(times_s),
        "data": list(times_s),
        "iterations": 1,
    }


def _quartile(data: Sequence[float]) -> float:
    """Gives the lower quartile of sorted values: the lower half's median, and for odd n a mean of two neighbours.

    For n = 4m + 1 it is (x[m-1] + 3 x[m]) / 4 and for n = 4m + 3 it is (3 x[m] + x[m+1]) / 4, counted from 0.
    """
    n = len(data)
    if n == 1:
        return data[0]
    if n % 2 == 0:
        return statistics.median(data[: n // 2])
    m = n // 4
    if n % 4 == 1:
        return 0.25 * data[m - 1] + 0.75 * data[m]
    return 0.75 * data[m] + 0.25 * data[m + 1]
