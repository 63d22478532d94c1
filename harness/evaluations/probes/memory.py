"""How much memory a model needs, from kernel counters and not from samples.

Samples miss what lives between two of them; high-water marks miss nothing. The probe reads the mark as it finds it,
which covers loading, then touches every weight with one pass, resets the mark, and runs the same shape again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.evaluations.probes import clock, device_memory, process_memory
from harness.evaluations.probes.prompts import Shape, check_fits, unseen
from harness.evaluations.rows import by_task, column
from harness.interfaces import EvaluationContext, Session
from harness.record import Interval, Metric, Observation, Scalar
from harness.spec import Need

NAME = "probes.memory"
LOAD = "load"
LOAD_CAVEAT = "covers everything this process did before the probe: put the probe first in its suite"
NOT_RESET = "the mark could not be reset: covers the life of the process"
BOUNDS = "bounds from kernel high-water marks"


@final
@dataclass(frozen=True)
class MemoryProbe:
    """Peak memory while loading and while generating, split into allocated and file-mapped.

    Measures: peak resident bytes up to the probe (task `load`); in a generation of a stated shape the peak, its
              file-mapped part and its allocated part (anonymous and shared memory); on an accelerator what the
              allocator held and reserved.
    Needs:    a runtime with `generate`. The split needs Linux; elsewhere the sum alone is given.
    Why:      memory decides whether a model runs at all, and mapped weights are cheaper than copied ones.
    Known:    the allocated part is an upper bound with the interval it must lie in; it is absent where the kernel does
              not let the mark be reset or dropped mapped pages meanwhile. Everything in the process counts, the
              interpreter and the engine's libraries included. An engine that preallocates shows its setting.
    Source:   proc(5): `VmHWM`, `RssAnon`, `RssFile`, `RssShmem`, `clear_refs`; getrusage(2) elsewhere; the caveats of
              each metric name the counter.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset({"generate"})

    prompt_tokens: int = 128
    decode_tokens: int = 32
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in self.shape.model_dump().items():
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: at least 1")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def shape(self) -> Shape:
        return Shape(prompt_tokens=self.prompt_tokens, decode_tokens=self.decode_tokens, batch=self.batch)

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        loaded = process_memory.read()
        values: dict[str, Scalar] = {"peak_bytes": loaded.peak_bytes, "source": loaded.source}
        yield Observation(evaluation=NAME, task=LOAD, sample="launch", values=values)
        check_fits(session, self.shape)
        context.progress(0.1, "touching every weight")
        clock.collect(session, unseen(session, self.shape, seed=context.seed, purpose="memory, first pass"))
        requests = unseen(session, self.shape, seed=context.seed, purpose="memory, measured")
        context.progress(0.5, "generating")
        with device_memory.watch(context.hardware.device) as on_device:
            was_reset = process_memory.reset_peak()
            before = process_memory.read()
            clock.collect(session, requests)
            after = process_memory.read()
        seen = process_memory.split(before, after, was_reset=was_reset)
        yield self._row(seen, source=after.source, was_reset=was_reset)
        for source, peak in on_device.items():
            values = {"peak_device_bytes": peak, "source": source}
            yield Observation(evaluation=NAME, task=f"{source}, generate", sample=self.shape.label, values=values)

    def _row(self, seen: process_memory.Split, *, source: str, was_reset: bool) -> Observation:
        low, high = seen.own or (None, None)
        values: dict[str, Scalar] = {
            "peak_bytes": seen.peak_bytes,
            "peak_file_bytes": seen.file_bytes,
            "peak_anon_bytes_low": low,
            "peak_anon_bytes": high,
            "source": source,
            "was_reset": was_reset,
        }
        return Observation(evaluation=NAME, task=f"generate {self.shape.label}", sample="run", values=values)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        found: list[Metric] = []
        for task, rows in by_task(observations).items():
            for name in ("peak_bytes", "peak_file_bytes", "peak_anon_bytes", "peak_device_bytes"):
                values = column(rows, name)
                if values:
                    found.append(_metric(task, rows, name, max(values)))
        return tuple(found)


def _metric(task: str, rows: Sequence[Observation], name: str, value: float) -> Metric:
    low = column(rows, f"{name}_low")
    interval = Interval(low=max(low), high=value, level=1.0, method=BOUNDS) if low else None
    caveats = [f"source: {rows[0].values['source']}"]
    if task == LOAD:
        caveats.append(LOAD_CAVEAT)
    elif not all(row.values.get("was_reset", True) for row in rows):
        caveats.append(NOT_RESET)
    return Metric(
        evaluation=NAME,
        task=task,
        name=name,
        unit="bytes",
        value=value,
        n=len(rows),
        higher_is_better=False,
        interval=interval,
        caveats=tuple(caveats),
    )
