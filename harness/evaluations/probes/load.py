"""How long a model takes to load and how large it is, from what was really loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.evaluations.rows import by_task, column
from harness.interfaces import EvaluationContext, Session
from harness.record import Metric, Observation
from harness.spec import Need

CACHE_CAVEAT = (
    "the page cache was not dropped: warm where the files fit into memory, of unknown state where they do not"
)


@final
@dataclass(frozen=True)
class LoadProbe:
    """Load time and size of the weights.

    Measures: seconds to open the model; bytes of the weights' files on disk; bytes of the loaded weights in memory,
              scales and embeddings included; bits per weight, 8 * bytes in memory / parameters.
    Needs:    nothing beyond the loaded model.
    Why:      size is what compression is for, and a configuration's "4 bits" is seldom what is loaded.
    Known:    the load time is that of one launch and includes the engine's own import; artifacts are read for their
              digest before, so the page cache is as warm as memory allows. An emulated quantization has the size of
              unpacked weights.
    Source:   `Identity`, which a runtime reads from the loaded tensors.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        identity = session.identity
        values: dict[str, float | int | bool | str | None] = {
            "load_s": context.load_s,
            "weights_disk_bytes": identity.weights_disk_bytes,
            "weights_mem_bytes": identity.weights_memory_bytes,
            "parameters": identity.parameters,
            "page_cache": "not dropped",
        }
        yield Observation(evaluation="probes.load", task="load", sample="launch", values=values)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for task, rows in by_task(observations).items():
            mean = {name: sum(values) / len(values) for name in _UNITS if (values := column(rows, name))}
            mean["bits_per_weight"] = 8 * mean["weights_mem_bytes"] / mean["parameters"]
            for name, (shown, unit) in _UNITS.items():
                found.append(
                    Metric(
                        evaluation="probes.load",
                        task=task,
                        name=shown,
                        unit=unit,
                        value=mean[name],
                        n=len(rows),
                        higher_is_better=False,
                        caveats=(CACHE_CAVEAT,) if name == "load_s" else (),
                    )
                )
        return tuple(found)


_UNITS = {
    "load_s": ("load_warm_s", "s"),
    "weights_disk_bytes": ("weights_disk_bytes", "bytes"),
    "weights_mem_bytes": ("weights_mem_bytes", "bytes"),
    "bits_per_weight": ("bits_per_weight", "bits"),
    "parameters": ("parameters", "weights"),
}
"""Column of a row -> name and unit of its metric."""
