"""From the speed probe's rows to its metrics: medians, intervals and shares of the ceiling.

A share above 1.02 cannot be: either the ceiling was measured while a neighbour was busy or it is not the right one.
Such a share is reported as what it is, an invalid utilization, and never clipped.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluations.probes.ceiling import decode_roofline_tps
from harness.evaluations.rows import by_task, column
from harness.record import Interval, Metric, Observation
from harness.statistics.quantiles import N_MIN, median_interval

CEILING = "ceiling"
METHOD = "order statistics over repetitions of one launch"
FEW = f"fewer than {N_MIN} repetitions: no interval"
SERIAL = "the runtime answered the batch one request after another"
NO_KV = "KV-cache reads are left out of the bound"
INVALID = "above the ceiling and so invalid as a utilization"
TOLERANCE = 1.02

_UNITS = {"ttft_s": "s", "tpot_s": "s", "prefill_tps": "tokens/s", "decode_tps": "tokens/s"}


@dataclass(frozen=True)
class _Bounds:
    """The best of the ceilings that were seen, and what the model weighs."""

    bandwidth_bytes_per_s: float
    matmul_flops: float
    weights_bytes: float

    @classmethod
    def best_of(cls, rows: Sequence[Observation]) -> _Bounds | None:
        """A ceiling is the most that the machine did, so the best probe counts; None where none was possible."""
        names = ("bandwidth_bytes_per_s", "matmul_flops", "weights_mem_bytes")
        best = [max(values) for name in names if (values := column(rows, name))]
        return cls(*best) if len(best) == len(names) else None


def metrics(observations: Sequence[Observation]) -> tuple[Metric, ...]:
    """Gives the metrics of every shape, and of the ceiling."""
    groups = by_task(observations)
    bounds = _Bounds.best_of(groups.get(CEILING, []))
    found = _ceiling_metrics(bounds, n=len(groups.get(CEILING, [])))
    for task, rows in groups.items():
        if task.startswith(("prefill ", "decode ")):
            found += [metric for name in _UNITS if (metric := _median(task, rows, name))]
            found += _shares(task, rows, bounds) if bounds else []
    return tuple(found)


def _median(task: str, rows: Sequence[Observation], name: str) -> Metric | None:
    values = column(rows, name)
    if not values:
        return None
    around = median_interval(values)
    interval = None if around is None else Interval(low=around.low, high=around.high, level=around.level, method=METHOD)
    together = all(row.values.get("together", True) for row in rows)
    caveats = [*([] if together else [SERIAL]), *([] if interval else [FEW])]
    return Metric(
        evaluation=rows[0].evaluation,
        task=task,
        name=name,
        unit=_UNITS[name],
        value=statistics.median(values),
        n=len(values),
        higher_is_better=name.endswith("_tps"),
        interval=interval,
        caveats=tuple(caveats),
    )


def _shares(task: str, rows: Sequence[Observation], bounds: _Bounds) -> list[Metric]:
    """Gives the bound of the decode throughput and the share of it that was reached."""
    values = column(rows, "decode_tps")
    if not values:
        return []
    batch = int(column(rows, "batch")[0])
    roofline = decode_roofline_tps(bounds.bandwidth_bytes_per_s, weights_bytes=bounds.weights_bytes, batch=batch)
    share = statistics.median(values) / roofline
    caveats = (NO_KV, *((INVALID,) if share > TOLERANCE else ()))
    return [
        Metric(
            evaluation=rows[0].evaluation,
            task=task,
            name=name,
            unit=unit,
            value=value,
            n=len(values),
            higher_is_better=True,
            caveats=caveats,
        )
        for name, unit, value in (("mbu", "fraction", share), ("roofline_tps", "tokens/s", roofline))
    ]


def _ceiling_metrics(bounds: _Bounds | None, *, n: int) -> list[Metric]:
    if bounds is None:
        return []
    shown = (
        ("bandwidth_bytes_per_s", "bytes/s", bounds.bandwidth_bytes_per_s),
        ("matmul_flops", "flop/s", bounds.matmul_flops),
    )
    return [
        Metric(evaluation="probes.speed", task=CEILING, name=name, unit=unit, value=value, n=n, higher_is_better=True)
        for name, unit, value in shown
    ]
