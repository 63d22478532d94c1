"""A speed probe for the fake runtime: rates come from a file, and every launch leaves a line in another.

`interleave` is what a test's child process runs, so that it can be killed.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness import testing
from harness.errors import Unsupported
from harness.interfaces import EvaluationContext, Session
from harness.record import Metric, Observation
from harness.spec import Need

POINTS = testing.ENTRY_POINTS.replace("[harness.evaluations]", "[harness.evaluations]\npaced = tests.paced:Paced")


@final
@dataclass(frozen=True)
class Paced:
    """Measures: rates that a test wrote down. Needs: nothing. Why: tests. Known: no clock. Source: ours.

    The file holds a list: the n-th launch takes the n-th rate, beyond the list 100; compressed models are 10 % slower.
    A rate of null fails the launch.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset()
    folder: str = "."
    seconds: float = 0.0

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        log, rates = Path(self.folder) / "launches.txt", Path(self.folder) / "rates.json"
        before = log.read_text().splitlines() if log.exists() else []
        with log.open("a") as file:
            file.write("candidate\n" if context.artifact.lineage else "baseline\n")
        given = json.loads(rates.read_text()) if rates.exists() else []
        rate = given[len(before)] if len(before) < len(given) else 100.0
        if rate is None:
            raise RuntimeError("asked to fail")
        if rate == "gap":
            raise Unsupported("asked to be unsupported")
        for repetition in range(3):
            time.sleep(self.seconds / 3)
            value = (0.9 if context.artifact.lineage else 1.0) * rate * (1 + repetition / 1000)
            yield Observation(evaluation="paced", task="decode", sample=str(repetition), values={"decode_tps": value})

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        values = sorted(float(row.values["decode_tps"] or 0) for row in observations)
        return tuple(
            Metric(
                evaluation="paced",
                task="decode",
                name=name,
                unit=unit,
                value=value,
                n=len(values),
                higher_is_better=True,
            )
            for name, unit, value in (("decode_tps", "tokens/s", values[1]), ("items", "1", 3.0), ("open_s", "s", 0.5))
        )
