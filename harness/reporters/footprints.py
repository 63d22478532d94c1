"""Whose pupil each model is taken for, and whether packing it hides that.

A classifier that learned the teachers' own texts says of each of a model's texts whose manner it has. What it says of
texts by the teachers themselves bounds everything: where it cannot tell the teachers apart, no student can give one
away. A student's share for its teacher is read beside the share of the same model before anybody taught it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.record import Metric
from harness.reporters.text import NOTHING, plain, table, with_interval
from harness.reporters.variants import Names, Variant

EVALUATION, SHARE = "footprint", "share."
WORDS = ("Pipeline",)


def footprint_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields a ceiling and a table for each question asked; nothing where none was."""
    tasks = sorted({metric.task for variant in found for metric in variant.row.metrics if _is_share(metric)})
    for task in tasks:
        asked = [(variant, _by_name(variant, task)) for variant in found]
        asked = [(variant, metrics) for variant, metrics in asked if metrics]
        if len(tasks) > 1:
            yield f"### {plain(task)}"
        yield _ceiling(asked[0][1])
        yield table([{"Pipeline": names.label(variant), **_row(metrics)} for variant, metrics in asked], left=WORDS)


def _is_share(metric: Metric) -> bool:
    return metric.evaluation == EVALUATION and metric.name.startswith(SHARE)


def _by_name(variant: Variant, task: str) -> dict[str, Metric]:
    return {m.name: m for m in variant.row.metrics if m.evaluation == EVALUATION and m.task == task}


def _ceiling(metrics: dict[str, Metric]) -> str:
    told = (
        "Share of each model's texts that a classifier of the teachers' texts puts down to each teacher, 95 % "
        "interval; a model's row is to be read beside that of the model before distillation."
    )
    if (ceiling := metrics.get("separability")) is None or ceiling.chance is None or ceiling.interval is None:
        return told
    shown = with_interval(ceiling.value, ceiling.interval)
    bound = f"Of the teachers' own {ceiling.n:,} texts it puts {shown} down to the right one; guessing gives "
    verdict = (
        "the teachers can be told apart, and that share is the most a student can show"
        if ceiling.interval.low > ceiling.chance
        else "these texts do not tell the teachers apart, so no share below says anything about a teacher"
    )
    return f"{told} {bound}{ceiling.chance:.2f}: {verdict}."


def _row(metrics: dict[str, Metric]) -> dict[str, str]:
    shares = {
        f"Taken for {plain(name.removeprefix(SHARE))}": with_interval(metric.value, metric.interval)
        for name, metric in sorted(metrics.items())
        if name.startswith(SHARE)
    }
    right = metrics.get("accuracy")
    texts = next(metric.n for name, metric in metrics.items() if name.startswith(SHARE))
    return {
        **shares,
        "Taken for its own": with_interval(right.value, right.interval) if right else NOTHING,
        "Texts": f"{texts:,}",
    }
