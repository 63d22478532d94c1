"""From fidelity's rows to its metrics: pure, exact, and the same whatever the order of the rows.

Means per token come from one row a window with the window as the unit of inference; quantiles come from one row a
token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.evaluations.rows import by_task, column
from harness.record import Interval, Metric, Observation
from harness.statistics.clusters import RatioOfSums
from harness.statistics.quantiles import tail_quantile
from harness.statistics.windows import mean

METHOD = "cluster-robust t over windows"
DEPENDENT = "tokens of a window depend on each other: a description of these tokens, without an interval"


@dataclass(frozen=True)
class _Mean:
    """A mean per token (or per byte) and the way it is shown; `show` is increasing."""

    name: str
    unit: str
    higher_is_better: bool
    ratio: RatioOfSums
    show: Callable[[float], float] = float

    def metric(self, evaluation: str, task: str) -> Metric:
        bounds = self.ratio.interval()
        interval = None
        if bounds is not None:
            interval = Interval(low=self.show(bounds[0]), high=self.show(bounds[1]), method=METHOD)
        return Metric(
            evaluation=evaluation,
            task=task,
            name=self.name,
            unit=self.unit,
            value=self.show(self.ratio.value),
            n=self.ratio.clusters,
            higher_is_better=self.higher_is_better,
            interval=interval,
        )


def metrics(observations: Sequence[Observation], *, token_prefix: str) -> tuple[Metric, ...]:
    """Gives the metrics of every text in the rows."""
    groups = by_task(observations)
    found: list[Metric] = []
    for task, windows in groups.items():
        if not task.startswith(token_prefix):
            found += [one.metric(windows[0].evaluation, task) for one in _means(windows)]
            found += _tails(groups.get(token_prefix + task, []), task)
    return tuple(found)


def _means(windows: Sequence[Observation]) -> Iterator[_Mean]:
    yield _Mean("perplexity", "per token", False, mean(windows, "nll"), math.exp)
    yield _Mean("perplexity_reference", "per token", False, mean(windows, "nll_reference"), math.exp)
    yield _Mean("ln_perplexity_ratio", "nats", False, mean(windows, "ln_perplexity_ratio"))
    yield _Mean("bits_per_byte", "bits/byte", False, mean(windows, "bits_per_byte"))
    # A divergence is never negative, and neither is what its mean may be.
    yield _Mean("kl_mean", "nats", False, mean(windows, "kl_mean"), lambda value: max(value, 0.0))
    yield _Mean("top1_agreement", "fraction", True, mean(windows, "top1_agreement"), _fraction)
    yield _Mean("flips_right_to_wrong", "fraction", False, mean(windows, "flips_right_to_wrong"), _fraction)
    yield _Mean("flips_wrong_to_right", "fraction", True, mean(windows, "flips_wrong_to_right"), _fraction)


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _tails(tokens: Sequence[Observation], task: str) -> list[Metric]:
    kl = column(tokens, "kl")
    if not kl:
        return []
    tails = {"kl_p99": tail_quantile(kl, 0.99), "kl_p999": tail_quantile(kl, 0.999), "kl_max": max(kl)}
    return [
        Metric(
            evaluation=tokens[0].evaluation,
            task=task,
            name=name,
            unit="nats",
            value=value,
            n=len(kl),
            higher_is_better=False,
            caveats=(DEPENDENT,),
        )
        for name, value in tails.items()
        if value is not None
    ]
