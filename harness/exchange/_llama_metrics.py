"""The metrics of fidelity that a log of `llama-perplexity` has.

From recovered windows where there are any, with the interval that our own fidelity gives; else the tool's number with
its own standard error. The tool takes tokens as independent, so that its interval is the narrower one: the method says
which it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.exchange._llama_log import Estimate, Log
from harness.exchange._llama_windows import EVALUATION
from harness.record import Interval, Metric, Observation
from harness.statistics import windows
from harness.statistics.intervals import normal_quantile

BY_WINDOW = "cluster-robust t over windows recovered from running means"
BY_TOOL = "llama.cpp's standard error, normal: it takes the tokens of a chunk as independent"
DEPENDENT = "tokens of a window depend on each other: a description of these tokens, without an interval"
LARGEST_EXPONENT = 700.0
"""Of a perplexity that a float holds: of two chunks an end may lie beyond."""
TAILS = {"99.0% KLD": "kl_p99", "99.9% KLD": "kl_p999", "Maximum KLD": "kl_max"}


@dataclass(frozen=True)
class Shown:
    """A metric as the last block has it: its labels there, what windows call it and need, and its scale."""

    name: str
    unit: str
    labels: tuple[str, ...]
    sums: str
    columns: frozenset[str]
    higher_is_better: bool = False
    show: Callable[[float], float] = float


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


SHOWN = (
    Shown("perplexity", "per token", ("Mean PPL(Q)", "PPL"), "nll", frozenset({"nll"}), show=math.exp),
    Shown(
        "perplexity_reference", "per token", ("Mean PPL(base)",), "nll_reference", frozenset({"nll_ref"}), show=math.exp
    ),
    Shown(
        "ln_perplexity_ratio",
        "nats",
        ("Mean ln(PPL(Q)/PPL(base))",),
        "ln_perplexity_ratio",
        frozenset({"nll", "nll_ref"}),
    ),
    Shown("kl_mean", "nats", ("Mean KLD",), "kl_mean", frozenset({"kl_mean"})),
    Shown("top1_agreement", "fraction", ("Same top p",), "top1_agreement", frozenset({"top1_same"}), True, _fraction),
)


def metrics(log: Log, rows: Sequence[Observation], task: str) -> Iterator[Metric]:
    """Yields the metrics of a log whose recovered windows are `rows`."""
    for shown in SHOWN:
        printed = next((log.block[label] for label in shown.labels if label in log.block), None)
        if printed is not None:
            yield _metric(shown, printed, rows if _have(rows, shown.columns) else (), task, log.chunks)
    tokens = sum(int(str(row.values["tokens"])) for row in rows)
    for label, name in TAILS.items():
        if tokens and label in log.block:
            yield Metric(
                evaluation=EVALUATION,
                task=task,
                name=name,
                unit="nats",
                value=log.block[label].value,
                n=tokens,
                higher_is_better=False,
                caveats=(DEPENDENT,),
            )


def _have(rows: Sequence[Observation], columns: frozenset[str]) -> bool:
    return bool(rows) and all(columns <= row.values.keys() for row in rows)


def _metric(shown: Shown, printed: Estimate, rows: Sequence[Observation], task: str, chunks: int) -> Metric:
    made = Metric(
        evaluation=EVALUATION,
        task=task,
        name=shown.name,
        unit=shown.unit,
        value=printed.value,
        n=chunks,
        higher_is_better=shown.higher_is_better,
    )
    if not rows:
        return made.model_copy(update={"interval": _of_tokens(printed)})
    found = windows.mean(rows, shown.sums)
    ends = found.interval()
    interval = None
    if ends is not None and not (shown.show is math.exp and ends[1] > LARGEST_EXPONENT):
        interval = Interval(low=shown.show(ends[0]), high=shown.show(ends[1]), method=BY_WINDOW)
    return made.model_copy(update={"value": shown.show(found.value), "interval": interval})


def _of_tokens(printed: Estimate) -> Interval | None:
    if not printed.error:
        return None
    reach = normal_quantile(0.95) * printed.error
    return Interval(low=printed.value - reach, high=printed.value + reach, method=BY_TOOL)
