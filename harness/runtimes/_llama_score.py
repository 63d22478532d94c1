"""Log-probabilities of continuations: walk the plan of shared prefixes through the engine and read the rows off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.errors import ModelError
from harness.interfaces import Scored, ScoreRequest
from harness.runtimes._llama_api import Engine, Floats
from harness.runtimes._llama_prefixes import Reading, Wave, paths, waves


def score(engine: Engine, requests: Sequence[ScoreRequest]) -> list[Scored]:
    """Scores every request, in the order given; what they share is computed once. Raises ModelError for NaN."""
    answers = _Answers([len(request.continuation) for request in requests])
    limits = engine.limits
    plan = waves(paths(requests), batch_tokens=limits.batch_tokens, sequences=limits.sequences, cells=limits.cells)
    engine.clear()
    sequences_before = 0
    for wave in plan:
        _run(engine, _carry_over(engine, wave, sequences_before), answers)
        sequences_before = len(wave.paths)
    engine.clear()
    return answers.scored()


def _carry_over(engine: Engine, wave: Wave, sequences_before: int) -> Wave:
    """Cuts the cache down to what the wave keeps of the last sequence before it; gives the wave as it can be run."""
    kept, last = wave.kept[0], sequences_before - 1
    if not kept or not engine.forget(last, start=kept):
        engine.clear()
        return replace(wave, kept=(0,) * len(wave.paths))
    for sequence in range(last):
        engine.forget(sequence)
    if last:
        engine.share(last, target=0, end=kept)
        engine.forget(last)
    for sequence, end in enumerate(wave.kept[1:], start=1):
        if end:
            engine.share(0, target=sequence, end=end)
    return wave


def _run(engine: Engine, wave: Wave, answers: _Answers) -> None:
    pending: list[tuple[Reading, ...]] = []
    for step in wave.steps():
        if not engine.room:
            answers.read(engine.run(), pending)
            pending.clear()
        engine.add(step.token, position=step.position, sequences=step.sequences, wanted=bool(step.readings))
        if step.readings:
            pending.append(step.readings)
    answers.read(engine.run(), pending)


@dataclass
class _Answers:
    """Results as they are read off, by request and place."""

    lengths: Sequence[int]
    logprobs: list[list[float]] = field(init=False)
    greedy: list[list[bool]] = field(init=False)

    def __post_init__(self) -> None:
        self.logprobs = [[0.0] * length for length in self.lengths]
        self.greedy = [[False] * length for length in self.lengths]

    def read(self, rows_NV: Floats, readings: Sequence[Iterable[Reading]]) -> None:
        """Takes rows of logits and what each is wanted for; row by row, because a row fits into the CPU's cache."""
        scratch_V = np.empty(rows_NV.shape[1], dtype=np.float32)
        for row_V, wanted in zip(rows_NV, readings, strict=True):
            best = int(row_V.argmax())
            top = row_V[best]  # NaN when the row holds one: argmax stops there
            require_finite(float(top))
            np.exp(np.subtract(row_V, top, out=scratch_V), out=scratch_V)
            normalizer = float(top) + float(np.log(scratch_V.sum(dtype=np.float64)))
            for reading in wanted:
                logprob = float(row_V[reading.target]) - normalizer
                require_finite(logprob)
                self.logprobs[reading.request][reading.place] = logprob
                self.greedy[reading.request][reading.place] = reading.target == best

    def scored(self) -> list[Scored]:
        return [Scored(logprobs, greedy) for logprobs, greedy in zip(self.logprobs, self.greedy, strict=True)]


def require_finite(value: float) -> None:
    """Raises ModelError when a logit or a log-probability is NaN or infinite."""
    if not np.isfinite(value):
        raise ModelError(f"the model's logits hold {value}: its weights or its arithmetic are broken")
