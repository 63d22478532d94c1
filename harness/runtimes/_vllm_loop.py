"""Requests in, tokens and probabilities out: our requests in vLLM's terms, and its step loop.

A continuation is scored in one pass. All its tokens but the last are part of the prompt, and vLLM is asked for the
prompt's log-probabilities; the last token is the only one it may generate, and what the model thought of it before that
constraint comes with it. So no token is fed only to be ignored, and a choice of one token needs no probabilities
of the prompt at all. Beside each token the likeliest one is asked for, which tells whether greedy decoding would have
chosen it.

Nothing here imports vLLM: the engine, and what turns keywords into its `SamplingParams`, are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.errors import ModelError
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.runtimes.stopping import TextWatcher

Keywords = dict[str, Any]
Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""A context and a continuation."""


class Logprob(Protocol):
    """What vLLM tells about a token at a position."""

    logprob: float


Position = Mapping[int, Logprob]
"""The token that stands at a position and the likeliest one, which may be the same."""


class Engine(Protocol):
    """The part of vLLM's `LLMEngine` that is used here."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any: ...
    def step(self) -> list[Any]: ...
    def abort_request(self, request_ids: list[str]) -> None: ...


@dataclass
class Loop:
    """Runs one set of requests at a time; starting a set ends what an abandoned one left behind.

    `parameters` turns keywords into vLLM's `SamplingParams`.
    """

    engine: Engine
    parameters: Callable[[Keywords], Any]
    _running: dict[str, int] = field(default_factory=dict, init=False)
    _runs: int = field(default=0, init=False)

    def start(self, prompts: Sequence[tuple[Sequence[int], Keywords]]) -> None:
        """Hands prompts with their keywords to the engine."""
        self.stop(list(self._running.values()))
        self._runs += 1
        for index, (tokens, keywords) in enumerate(prompts):
            self._running[self._name(index)] = index
            self.engine.add_request(self._name(index), {"prompt_token_ids": list(tokens)}, self.parameters(keywords))

    def outputs(self) -> Iterator[tuple[int, Any]]:
        """Yields what the engine gives, with the index of its prompt, until no prompt is left."""
        run = self._runs
        while self._running:
            for output in self.engine.step():
                # One that was stopped may still have had a token under way.
                if output.request_id not in self._running:
                    continue
                index = self._running[output.request_id]
                if output.finished:
                    del self._running[output.request_id]
                yield index, output
                assert run == self._runs, "another call used the engine while this one was still running"

    def stop(self, indices: Iterable[int]) -> None:
        """Ends those of the prompts that the engine has not ended yet."""
        names = [name for index in indices if (name := self._name(index)) in self._running]
        for name in names:
            del self._running[name]
        if names:
            self.engine.abort_request(names)

    def _name(self, index: int) -> str:
        return f"{self._runs}-{index}"


def score(loop: Loop, requests: Sequence[ScoreRequest]) -> list[Scored]:
    """Scores requests; each distinct one once, in an order of its own, so that the order given changes nothing."""
    pairs = [(tuple(request.context), tuple(request.continuation)) for request in requests]
    wanted = sorted({pair for pair in pairs if pair[1]}, key=lambda pair: (-len(pair[0]) - len(pair[1]), pair))
    found: dict[Pair, Scored] = {}
    loop.start([scoring(pair) for pair in wanted])
    for index, output in loop.outputs():
        pair = wanted[index]
        positions = [*(output.prompt_logprobs or ())[len(pair[0]) :], *output.outputs[0].logprobs]
        found[pair] = scored(pair[1], positions)
    return [found[pair] if pair[1] else Scored((), ()) for pair in pairs]


def scoring(pair: Pair) -> tuple[tuple[int, ...], Keywords]:
    """Gives the prompt that scores a continuation after a context, and vLLM's keywords for it."""
    context, continuation = pair
    keywords: Keywords = {
        "max_tokens": 1,
        "temperature": 0.0,
        "allowed_token_ids": [continuation[-1]],
        "logprobs": 1,
        "prompt_logprobs": 1 if len(continuation) > 1 else None,
        "ignore_eos": True,
        "detokenize": False,
        "output_kind": "FINAL_ONLY",
    }
    return (*context, *continuation[:-1]), keywords


def scored(continuation: Sequence[int], positions: Sequence[Position]) -> Scored:
    """Reads the log-probabilities of a continuation. Raises ModelError when one is not a number."""
    logprobs = [position[token].logprob for token, position in zip(continuation, positions, strict=True)]
    if not all(math.isfinite(value) for value in logprobs):
        raise ModelError("the model's log-probabilities are not finite")
    # One more token than the one that stands there was asked for: the likeliest. Where they are the same there is one.
    return Scored(logprobs, [len(position) == 1 for position in positions])


def generate(
    loop: Loop, requests: Sequence[GenerateRequest], *, watch: Callable[[GenerateRequest], TextWatcher]
) -> Iterator[Token]:
    """Yields the tokens of all requests as they come; the watchers decide when a request ends."""
    watchers = [watch(request) for request in requests]
    loop.start([(request.prompt, generating(request)) for request in requests])
    for index, output in loop.outputs():
        for token in output.outputs[0].token_ids:
            finish = watchers[index].feed(token)
            if finish:
                loop.stop([index])
            yield Token(index, token, finish, watchers[index].text if finish else None)
            if finish:
                break
        assert watchers[index].finish or not output.finished, "vLLM ended a request that was not complete"


def generating(request: GenerateRequest) -> Keywords:
    """Gives vLLM's keywords for a request: it draws tokens, and never ends one before `max_tokens`."""
    return {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed if request.temperature > 0 else None,
        "ignore_eos": True,
        "detokenize": False,
        "output_kind": "DELTA",
    }
