"""How fast a model reads prompts and writes tokens, at stated lengths and batch sizes.

Every shape is warmed up with its full lengths until three runs agree; then the shapes take turns in random order, so
that a machine that slows down slows all of them. Each repetition has a prompt of its own and its raw times are kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from harness.evaluations.probes import ceiling, clock
from harness.evaluations.probes.prompts import Shape, check_fits, unseen
from harness.interfaces import EvaluationContext, Session
from harness.record import Metric, Observation, Scalar
from harness.spec import Need

NAME = "probes.speed"
STABLE_WITHIN = 0.03


@final
@dataclass(frozen=True)
class SpeedProbe:
    """Prefill and decode speed.

    Measures: time to first token, prompt tokens per second, time per output token, new tokens per second, for every
              prompt length and batch size; memory bandwidth and a matrix product on this machine, in the same process
              before and after; the decode speed that bandwidth allows, and the share of it that was reached (MBU).
    Needs:    a runtime with `generate` that honours `ignore_eos`.
    Why:      compression is bought for speed, and bytes saved are not always seconds saved.
    Known:    medians over repetitions of one launch, with order-statistic intervals; launches differ more than
              repetitions do, so compare several. Prompts are random token ids: what depends on the text (routing of
              experts, speculation) is not represented. Sampling is greedy and inside the times; tokenization is
              outside. Prefill includes choosing the first token. The bound leaves out reads of the KV cache and
              counts all weights as read: it is too high for long contexts, too low for mixtures of experts.
    Source:   TTFT and TPOT as MLPerf Inference defines them; roofline: S. Williams, A. Waterman, D. Patterson, 2009.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    requires: ClassVar[frozenset[str]] = frozenset({"generate"})

    prompt_tokens: Sequence[int] = field(default=(128,))
    decode_tokens: int = 32
    batch: Sequence[int] = field(default=(1,))
    repeats: int = 10
    warmup_s: float = 60.0

    def __post_init__(self) -> None:
        for name, values in (("prompt_tokens", self.prompt_tokens), ("batch", self.batch)):
            if not values or min(values) < 1:
                raise ValueError(f"{name} is {list(values)}; allowed: a list of numbers of at least 1")
        for name, value, least in (("decode_tokens", self.decode_tokens, 2), ("repeats", self.repeats, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; allowed: at least {least}")
        if self.warmup_s < 0:
            raise ValueError(f"warmup_s is {self.warmup_s}; allowed: 0 or more seconds for each shape")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def shapes(self) -> list[Shape]:
        """Every prompt length with every batch size."""
        pairs = [(tokens, batch) for tokens in self.prompt_tokens for batch in self.batch]
        return [Shape(prompt_tokens=tokens, decode_tokens=self.decode_tokens, batch=batch) for tokens, batch in pairs]

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        for shape in self.shapes:
            check_fits(session, shape)
        yield from _ceiling_rows(session, context, when="before")
        for shape in self.shapes:
            yield from self._warm_up(session, shape, context)
        order, runs = random.Random(context.seed), self.repeats * len(self.shapes)
        for block in range(self.repeats):
            shapes = self.shapes
            order.shuffle(shapes)
            for turn, shape in enumerate(shapes):
                done = block * len(shapes) + turn
                context.progress(done / runs, f"{shape.label}, repetition {block + 1} of {self.repeats}")
                requests = unseen(session, shape, seed=context.seed, purpose=f"measured {block}")
                yield from _rows(shape, clock.collect(session, requests), sample=f"repetition {block:03d}", turn=turn)
        yield from _ceiling_rows(session, context, when="after")

    def _warm_up(self, session: Session, shape: Shape, context: EvaluationContext) -> Iterator[Observation]:
        walls_s: list[float] = []
        while not clock.is_stable(walls_s, within=STABLE_WITHIN) and (not walls_s or sum(walls_s) < self.warmup_s):
            context.progress(None, f"warm-up {shape.label}")
            requests = unseen(session, shape, seed=context.seed, purpose=f"warm-up {len(walls_s)}")
            times = clock.timing(clock.collect(session, requests), prompt_tokens=shape.prompt_tokens)
            values: dict[str, Scalar] = {"wall_s": times.wall_s, "ttft_s": times.ttft_s}
            sample = f"run {len(walls_s):03d}"
            yield Observation(evaluation=NAME, task=f"warm-up {shape.label}", sample=sample, values=values)
            walls_s.append(times.wall_s)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        from harness.evaluations.probes.speed_summary import metrics

        return metrics(observations)


def _rows(shape: Shape, arrivals: clock.Arrivals, *, sample: str, turn: int) -> Iterator[Observation]:
    times = clock.timing(arrivals, prompt_tokens=shape.prompt_tokens)
    about: dict[str, Scalar] = {
        "prompt_tokens": shape.prompt_tokens,
        "decode_tokens": shape.decode_tokens,
        "batch": shape.batch,
        "turn": turn,
        "wall_s": times.wall_s,
        "cpu_s": arrivals.cpu_s,
        "together": times.together,
    }
    prefill: dict[str, Scalar] = {"ttft_s": times.ttft_s, "prefill_tps": times.prefill_tps}
    decode: dict[str, Scalar] = {"tpot_s": times.tpot_s, "decode_tps": times.decode_tps}
    for task, values in ((f"prefill {shape.prefill_label}", prefill), (f"decode {shape.label}", decode)):
        yield Observation(evaluation=NAME, task=task, sample=sample, values={**about, **values})


def _ceiling_rows(session: Session, context: EvaluationContext, *, when: str) -> Iterator[Observation]:
    context.progress(None, "measuring what the machine allows")
    found = ceiling.measure(context.hardware)
    identity = session.identity
    values: dict[str, Scalar] = {
        "weights_mem_bytes": identity.weights_memory_bytes,
        "threads": context.hardware.threads,
        **(found.model_dump() if found else {}),
    }
    yield Observation(evaluation=NAME, task="ceiling", sample=when, values=values)
