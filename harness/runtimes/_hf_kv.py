"""Keys and values in few bits: transformers' quantized cache, and scores as it would give them to a text it generates.

The cache works for one text at a time. What it reads first (the prompt) attends to itself as if nothing were quantized,
and is rounded when that pass is over. Later tokens attend to what was rounded and, unrounded, to the latest ones; when
there are `residual` of those, all that is in the cache is rounded anew. So one forward pass over a whole text, which is
how scores are usually computed, never meets a rounded number, and neither would the first token after a prompt.

Here the last token of a prompt is kept out of that first pass, so that whatever follows a prompt, a generated token or
the letter of an answer, has been predicted from a rounded cache. What follows goes through the cache in pieces, cut
where rounding happens: within a piece the cache stays what it would be if every token came alone. A score is then the
probability that generation sees.

A cache is copied by copying its layers: an update puts new tensors in their place and changes none.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import QuantizedCache

from harness.errors import Unsupported
from harness.interfaces import Scored, ScoreRequest
from harness.runtimes._hf_forward import Forward, Past
from harness.runtimes._hf_score import token_logprobs
from harness.runtimes.batching import Tokens

LIBRARIES: Mapping[str, tuple[str, int, int]] = {
    "int8": ("hqq", 8, 1),
    "int4": ("quanto", 4, 0),
    "int2": ("quanto", 2, 0),
}
"""What rounds to so many bits, and the axis along which its groups follow each other: the head's numbers, with both.

Along hqq's other axis, which is transformers' default, a group mixes heads and positions, and errors grow with every
time that the cache is rounded.
"""
LARGEST_GROUP = 64


@dataclass(frozen=True)
class QuantizedKv:
    """How keys and values are kept: the kind, and how many of the latest tokens may gather before all is rounded."""

    kind: str
    residual: int

    def empty(self, config: Any) -> QuantizedCache:
        """Gives a cache that has seen nothing. Raises Unsupported when there can be none for such a model."""
        library, bits, axis = LIBRARIES[self.kind]
        try:
            return QuantizedCache(
                library,
                config,
                nbits=bits,
                axis_key=axis,
                axis_value=axis,
                q_group_size=group_of(config),
                residual_length=self.residual,
            )
        except ImportError as error:
            raise Unsupported(
                f"keys and values in {self.kind} need a package that is missing: {error}",
                remedy="install the extra `quantizers`, or leave `kv` out",
            ) from error
        except ValueError as error:
            raise Unsupported(f"this model's cache cannot be quantized: {error}", remedy="leave `kv` out") from error

    @property
    def caveat(self) -> str:
        """Says what is not quantized."""
        return (
            f"the latest keys and values, {self.residual - 1} at most, are not quantized, nor are a prompt's for itself"
        )

    def describe(self, config: Any) -> str:
        """Gives what the record says of it."""
        return f"kv {self.kind} {LIBRARIES[self.kind][0]} group {group_of(config)} residual {self.residual}"


def group_of(config: Any) -> int:
    """Gives how many numbers share a scale: as many as divide a head's width, up to LARGEST_GROUP."""
    text = config.get_text_config(decoder=True).to_dict()
    width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return math.gcd(width, LARGEST_GROUP)


def prepare(kv: QuantizedKv, model: Any) -> None:
    """Raises Unsupported when the model cannot keep its keys and values so; keeps quanto from compiling anything."""
    if Forward(model).cache_name != "past_key_values":
        raise Unsupported("this model keeps no keys and values that could be quantized", remedy="leave `kv` out")
    kv.empty(model.config)
    if LIBRARIES[kv.kind][0] == "quanto":
        _unpack_without_compiling()


def _unpack_without_compiling() -> None:
    """Lets quanto unpack on the host by tensor operations, as it does elsewhere.

    Otherwise it compiles an extension into its installation folder in the midst of the first pass, for a minute.
    """
    from optimum.quanto.library.extensions import get_extension

    extension: Any = get_extension("quanto_cpp")
    extension._lib = _HostUnpack


class _HostUnpack:
    """Stands where the compiled extension would."""

    @staticmethod
    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        """Gives the codes of packed lines, those in the lowest bits first."""
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def read_prompt(forward: Forward, prompt: Sequence[int]) -> tuple[torch.Tensor, Past]:
    """Gives the logits (1, V) after a prompt and its past; its last token attends to the others when they are rounded.

    A prompt of one token has no others: it attends to itself.
    """
    past = forward.empty(1)
    if len(prompt) > 1:
        _, past = forward.extend([prompt[:-1]], picks=[(0, 0)], past=past)
    logits_1V, past = forward.extend([prompt[-1:]], picks=[(0, 0)], past=past)
    assert past is not None, "a pass that was given a past gives one back"
    return logits_1V, past


def score(forward: Forward, requests: Sequence[ScoreRequest], *, residual: int) -> list[Scored]:
    """Scores every request, in the order given; a context that several share is read once."""
    wanted: dict[Tokens, set[Tokens]] = {}
    for request in requests:
        wanted.setdefault(tuple(request.context), set()).add(tuple(request.continuation))
    found: dict[tuple[Tokens, Tokens], Scored] = {}
    for context, continuations in wanted.items():
        first_1V, past = read_prompt(forward, context)
        cuts = Cuts(residual, gathered=int(len(context) > 1))
        for continuation in continuations:
            rows = _rows(forward, continuation, first_1V, fork(past), cuts)
            found[context, continuation] = _scored(continuation, rows)
    return [found[tuple(request.context), tuple(request.continuation)] for request in requests]


def logits(forward: Forward, tokens: Sequence[int], *, residual: int) -> torch.Tensor:
    """Gives logits (N, V) after each token, the first being the prompt."""
    first_1V, past = read_prompt(forward, tokens[:1])
    # One more token than is read: after the last one nothing follows.
    return torch.cat(list(_rows(forward, [*tokens[1:], 0], first_1V, past, Cuts(residual, gathered=0))))


@dataclass(frozen=True)
class Cuts:
    """Where a text is cut: all is rounded when `residual` tokens have gathered, `gathered` of them already now."""

    residual: int
    gathered: int

    def pieces(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields beginning and end of what may go through the cache at once, of `count` tokens.

        The token that makes the gathered ones `residual` goes alone: it attends to them unrounded, the next does not.

        >>> list(Cuts(4, gathered=0).pieces(7)), list(Cuts(4, gathered=1).pieces(4))
        ([(0, 3), (3, 4), (4, 7)], [(0, 2), (2, 3), (3, 4)])
        """
        begin, gathered = 0, self.gathered
        while begin < count:
            room = self.residual - 1 - gathered
            end = min(count, begin + (room or 1))
            yield begin, end
            begin, gathered = end, gathered + end - begin if room else 0


def fork(past: Past) -> Past:
    """Gives a past that goes on by itself from the same beginning."""
    cache = copy.copy(past.cache)
    cache.layers = [copy.copy(layer) for layer in past.cache.layers]
    return Past(cache, past.seen_BS)


def _rows(
    forward: Forward, continuation: Sequence[int], first_1V: torch.Tensor, past: Past | None, cuts: Cuts
) -> Iterator[torch.Tensor]:
    """Yields the logits before each token of the continuation, piece by piece."""
    if continuation:
        yield first_1V
    for begin, end in cuts.pieces(len(continuation) - 1):
        picks = [(0, step) for step in range(end - begin)]
        logits_NV, past = forward.extend([continuation[begin:end]], picks=picks, past=past)
        yield logits_NV


def _scored(continuation: Tokens, rows: Iterator[torch.Tensor]) -> Scored:
    logprobs: list[float] = []
    greedy: list[bool] = []
    for logits_NV in rows:
        tokens = continuation[len(logprobs) : len(logprobs) + len(logits_NV)]
        values, best = token_logprobs(logits_NV, range(len(tokens)), tokens)
        logprobs += values
        greedy += [winner == token for winner, token in zip(best, tokens, strict=True)]
    return Scored(logprobs, greedy)
