"""Speed against the reference, where the two can be compared at all.

A ratio of speeds means something only where everything but the compression was the same: runtime, device, threads and
the machine's hard facts. It means nothing for emulated weights. Several shapes (prompt length x batch) give the
geometric mean of their ratios, the only mean that does not depend on which of the two is called the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.record import Interval, Metric
from harness.reporters.frame import Row

PROBE = "probes.speed"
METHOD = "ends of the two intervals divided"


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the reference, over `shapes` shapes; `reason` says why there is none."""

    value: float | None
    interval: Interval | None = None
    shapes: int = 0
    reason: str = ""


def speedup(row: Row, references: Sequence[Row], *, name: str) -> Speedup:
    """Gives the ratio of a throughput to the reference's on the same runtime, device and machine.

    The interval divides the low end of one by the high end of the other and so is wider than it need be: it covers at
    least what both intervals say where their errors are independent and normal.
    """
    ours = {metric.task: metric for metric in row.named(name, evaluation=PROBE)}
    if row.is_emulated:
        return Speedup(None, reason="emulated")
    if not ours:
        return Speedup(None, reason="not measured")
    if row.is_reference:
        return Speedup(None, reason="reference")
    beside = [
        other
        for other in references
        if other.family == row.family
        and other.cell.runtime == row.cell.runtime
        and other.cell.hardware == row.cell.hardware
        and other.named(name, evaluation=PROBE)
    ]
    if not beside:
        return Speedup(None, reason="no speed of the reference on this runtime and device")
    machine = _hard(row)
    reference = next((other for other in beside if machine and _hard(other) == machine), None)
    if reference is None:
        return Speedup(None, reason="the reference was measured on another machine")
    theirs = {metric.task: metric for metric in reference.named(name, evaluation=PROBE)}
    shared = sorted(ours.keys() & theirs.keys())
    return _ratio([(ours[task], theirs[task]) for task in shared])


def _hard(row: Row) -> object:
    return next((record.machine.get("hard") for record in row.measured if record.machine.get("hard")), None)


def _ratio(pairs: Sequence[tuple[Metric, Metric]]) -> Speedup:
    usable = [(own, other) for own, other in pairs if own.value > 0 and other.value > 0]
    if not usable:
        return Speedup(None, reason="no shape was measured for both")
    value = _geometric_mean([own.value / other.value for own, other in usable])
    ends = [(own.interval, other.interval) for own, other in usable]
    known = [(own, other) for own, other in ends if own and other and min(own.low, other.low) > 0]
    interval = None
    if len(known) == len(usable):
        interval = Interval(
            low=_geometric_mean([own.low / other.high for own, other in known]),
            high=_geometric_mean([own.high / other.low for own, other in known]),
            level=min(min(own.level, other.level) for own, other in known),
            method=METHOD,
        )
    return Speedup(value, interval, len(usable))


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))
