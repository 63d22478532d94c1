"""From rows to metrics, purely: any run's rows can be summarized again, on any machine, by a better statistic.

Means carry Wilson's interval when every value is 0 or 1 and Student's t otherwise. What a text costs is a ratio of
sums (bits per byte is total bits over total bytes); its interval is that of the linearized ratio: with R = Σx/Σy, the
values R + (xᵢ - R·yᵢ)/ȳ have mean R and the spread that R has to first order (Cochran, Sampling Techniques, 3rd ed.,
section 6.4). Perplexities are exponentials of such ratios, and so are the ends of their intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.evaluations.rows import column
from harness.record import Interval, Metric, Observation
from harness.statistics.intervals import mean_interval

FACTS = frozenset(
    {
        *("score", "chance", "category", "prompt_hash", "item_hash", "response", "target"),
        *("target_logprob", "margin", "logprob", "bytes", "words", "lower_is_better"),
        *("truncated", "unparsed", "cluster"),
    }
)
"""What rows hold beside metrics."""


def summarize(evaluation: str, task: str, rows: Sequence[Observation]) -> tuple[Metric, ...]:
    """Gives `score` with its chance floor, then every metric of the task; nothing for no rows."""
    if not rows:
        return ()
    summary = _Summary(evaluation, task, tuple(sorted(rows, key=lambda one: one.sample)))
    return tuple(summary.metrics())


@dataclass(frozen=True)
class _Summary:
    """The metrics of one task's rows, which are sorted so that sums do not depend on the order seen."""

    evaluation: str
    task: str
    rows: tuple[Observation, ...]

    def metrics(self) -> Iterator[Metric]:
        named = sorted({key for one in self.rows for key in one.values} - FACTS)
        yield from self._score([key.partition(":")[0] for key in named if key.endswith(":custom")])
        for key in named:
            name, _, how = key.partition(":")
            if not how:
                yield self._mean(name, column(self.rows, name))
            elif how != "custom":
                yield self._corpus(name, how, [one.values[key] for one in self.rows if key in one.values])
        yield from self._text()
        yield from self._shares()

    def _score(self, unknown: Sequence[str]) -> Iterator[Metric]:
        """Gives the primary metric, when every row has it."""
        values, floors = column(self.rows, "score"), column(self.rows, "chance")
        if len(values) == len(self.rows):
            chance = math.fsum(floors) / len(floors) if len(floors) == len(self.rows) else None
            caveats = tuple(f"{name} is aggregated by the task's own code and not summarized" for name in unknown)
            yield self._mean("score", values).model_copy(update={"chance": chance, "caveats": caveats})

    def _corpus(self, name: str, how: str, parts: Sequence[object]) -> Metric:
        """Gives a metric that lm-eval computes from all rows together."""
        items: list[Any] = [json.loads(part) if isinstance(part, str) else part for part in parts]
        if how == "perplexity":
            return self._ratio(name, [-cost for cost in items], [1.0] * len(items), math.exp)
        from lm_eval.api.registry import get_aggregation

        return self._made(name, value=float(get_aggregation(how)(items)), n=len(items))

    def _text(self) -> Iterator[Metric]:
        """Gives what a text costs: per byte and per word."""
        costs = [-value for value in column(self.rows, "logprob")]
        if not costs:
            return
        if len(sizes := column(self.rows, "bytes")) == len(costs):
            bits = self._ratio("bits_per_byte", costs, sizes, lambda cost: cost / math.log(2))
            yield bits.model_copy(update={"unit": "bit/byte"})
            yield self._ratio("byte_perplexity", costs, sizes, math.exp)
        if len(words := column(self.rows, "words")) == len(costs):
            yield self._ratio("word_perplexity", costs, words, math.exp)

    def _shares(self) -> Iterator[Metric]:
        """Gives how many of the answers were cut or held nothing to read, of those where that is known."""
        for name in ("truncated", "unparsed"):
            if values := column(self.rows, name):
                yield self._mean(f"{name}_share", values).model_copy(update={"higher_is_better": False})

    def _mean(self, name: str, values: Sequence[float]) -> Metric:
        made = self._made(name, value=math.fsum(values) / len(values), n=len(values), interval=mean_interval(values))
        return made.model_copy(update={"unit": "fraction"}) if all(0 <= one <= 1 for one in values) else made

    def _ratio(
        self, name: str, costs: Sequence[float], counts: Sequence[float], finish: Callable[[float], float]
    ) -> Metric:
        ratio, size = math.fsum(costs) / math.fsum(counts), math.fsum(counts) / len(counts)
        interval = mean_interval([ratio + (x - ratio * y) / size for x, y in zip(costs, counts, strict=True)])
        if interval:
            interval = interval.model_copy(update={"low": finish(interval.low), "high": finish(interval.high)})
        return self._made(name, value=finish(ratio), n=len(costs), interval=interval)

    def _made(self, name: str, *, value: float, n: int, interval: Interval | None = None) -> Metric:
        lower = {word for one in self.rows for word in str(one.values.get("lower_is_better", "")).split()}
        return Metric(
            evaluation=self.evaluation,
            task=self.task,
            name=name,
            unit="1",
            value=value,
            n=n,
            higher_is_better=name not in lower,
            interval=interval,
        )
