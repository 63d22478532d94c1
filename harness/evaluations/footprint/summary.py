"""From a footprint's rows to its metrics: pure, and the same whatever the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.evaluations.rows import by_task, column
from harness.record import Metric, Observation
from harness.statistics.intervals import wilson_interval

TEACHERS = "teachers of "
"""Begins the task of rows about the teachers' own texts."""
PROBABILITY = "p."

LEANING = (
    "a student has one teacher, so a classifier that leans to it is right without reading: compare this teacher's "
    "share with that of the same model before it was distilled"
)
SHARED_PROMPTS = "the teachers' texts share prompts and the folds share texts: the interval is a guide"


def metrics(observations: Sequence[Observation]) -> tuple[Metric, ...]:
    """Gives accuracy (where the teacher is known), the shares, and separability, of every task in the rows."""
    found: list[Metric] = []
    for task, rows in by_task(observations).items():
        about = _Task(rows, task.removeprefix(TEACHERS))
        found += about.separability() if task.startswith(TEACHERS) else about.attribution()
    return tuple(found)


@dataclass(frozen=True)
class _Task:
    """The rows of one task, all about students' texts or all about teachers'."""

    rows: Sequence[Observation]
    task: str

    def attribution(self) -> Iterator[Metric]:
        names = sorted({key.removeprefix(PROBABILITY) for key in self.rows[0].values if key.startswith(PROBABILITY)})
        scores = column(self.rows, "score")
        if len(scores) == len(self.rows):
            yield self._share("accuracy", sum(map(round, scores)), chance=1 / len(names), caveats=(LEANING,))
        for name in names:
            count = sum(row.values["predicted"] == name for row in self.rows)
            yield self._share(f"share.{name}", count, chance=1 / len(names))

    def separability(self) -> Iterator[Metric]:
        names = {key for key in self.rows[0].values if key.startswith(PROBABILITY)}
        right = sum(row.values["predicted"] == row.values["truth"] for row in self.rows)
        yield self._share("separability", right, chance=1 / len(names), caveats=(SHARED_PROMPTS,))

    def _share(self, name: str, count: int, *, chance: float, caveats: tuple[str, ...] = ()) -> Metric:
        n = len(self.rows)
        return Metric(
            evaluation=self.rows[0].evaluation,
            task=self.task,
            name=name,
            unit="fraction",
            value=count / n,
            n=n,
            higher_is_better=True,
            interval=wilson_interval(count, n),
            chance=chance,
            caveats=caveats,
        )
