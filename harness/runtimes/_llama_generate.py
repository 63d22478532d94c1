"""Continuous batching: every step feeds one token of each running request and fills the batch with waiting prompts.

A request is admitted when a sequence is free and the cache has room for its prompt and all the tokens it may give, so a
running request never fails for want of room. When one ends, the next takes its place in the following step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.interfaces import GenerateRequest, Token
from harness.runtimes._llama_api import Engine, Floats
from harness.runtimes._llama_score import require_finite
from harness.runtimes.stopping import TextWatcher


@dataclass
class _Running:
    """A request that holds a sequence: `unfed` tokens go to the model next, the first of them at `position`."""

    index: int
    request: GenerateRequest
    sequence: int
    watcher: TextWatcher
    random: np.random.Generator
    unfed: list[int]
    position: int = 0

    def feed(self, engine: Engine) -> bool:
        """Adds as many tokens as the batch takes; True when none is left, so that the next token can be chosen."""
        now, self.unfed = self.unfed[: engine.room], self.unfed[engine.room :]
        for offset, token in enumerate(now):
            is_last = not self.unfed and offset == len(now) - 1
            engine.add(token, position=self.position + offset, sequences=(self.sequence,), wanted=is_last)
        self.position += len(now)
        return not self.unfed

    def take(self, logits_V: Floats) -> Token:
        """Chooses the next token from its logits."""
        chosen = choose(logits_V, temperature=self.request.temperature, random=self.random)
        finish = self.watcher.feed(chosen)
        self.unfed = [chosen]
        return Token(self.index, chosen, finish, self.watcher.text if finish else None)


def choose(logits_V: Floats, *, temperature: float, random: np.random.Generator) -> int:
    """Gives the most likely token at temperature 0, else one drawn from the softmax of logits / temperature."""
    best = int(logits_V.argmax())
    require_finite(float(logits_V[best]))
    if not temperature:
        return best
    weights_V = np.exp((logits_V.astype(np.float64) - float(logits_V[best])) / temperature)
    cumulative_V = np.cumsum(weights_V)
    drawn = np.searchsorted(cumulative_V, random.random() * cumulative_V[-1], side="right")
    return min(int(drawn), len(cumulative_V) - 1)


def _cells(request: GenerateRequest) -> int:
    """Gives the cache positions a request may come to hold; its last token is never fed."""
    return len(request.prompt) + request.max_tokens - 1


@dataclass
class _Schedule:
    """Who runs and who waits."""

    engine: Engine
    watch: Callable[[GenerateRequest], TextWatcher]
    waiting: deque[tuple[int, GenerateRequest]]
    free: deque[int]
    running: list[_Running] = field(default_factory=list)

    def admit(self) -> None:
        """Starts requests, in the order given, as long as the next one fits."""
        while self.waiting and self.free:
            index, request = self.waiting[0]
            if sum(_cells(one.request) for one in self.running) + _cells(request) > self.engine.limits.cells:
                return
            self.waiting.popleft()
            random = np.random.default_rng(request.seed)
            running = _Running(index, request, self.free.popleft(), self.watch(request), random, list(request.prompt))
            self.running.append(running)

    def step(self) -> list[Token]:
        """Runs one batch; gives the tokens it chose, by request."""
        # Those that decode go first: a long prompt must not hold up the others' next token.
        in_turn = sorted(self.running, key=lambda one: len(one.unfed) > 1)
        asking = [one for one in in_turn if self.engine.room and one.feed(self.engine)]
        tokens = [one.take(row_V) for one, row_V in zip(asking, self.engine.run(), strict=True)]
        return sorted(tokens, key=lambda token: token.request)

    def release(self) -> None:
        """Frees the sequences of the requests that ended."""
        for one in [one for one in self.running if one.watcher.finish]:
            self.engine.forget(one.sequence)
            self.free.append(one.sequence)
            self.running.remove(one)


def generate(
    engine: Engine, requests: Sequence[GenerateRequest], *, watch: Callable[[GenerateRequest], TextWatcher]
) -> Iterator[Token]:
    """Yields the tokens of all requests as they come, those of one step in the order the requests were given."""
    engine.clear()
    schedule = _Schedule(engine, watch, deque(enumerate(requests)), deque(range(engine.limits.sequences)))
    while schedule.waiting or schedule.running:
        schedule.admit()
        tokens = schedule.step()
        schedule.release()
        yield from tokens
