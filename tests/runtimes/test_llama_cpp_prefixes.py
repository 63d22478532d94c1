"""The plan of shared prefixes, run on an engine that only keeps books.

The fake keeps llama.cpp's rules for what may be in a batch and a cache, and its "logits" are a hash of the tokens it
was fed, in order: a score is right only if every sequence was fed exactly its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from harness.interfaces import ScoreRequest
from harness.runtimes._llama_api import Limits
from harness.runtimes._llama_prefixes import common, paths, waves
from harness.runtimes._llama_score import score

VOCABULARY = 4


def logits_after(tokens: Sequence[int]) -> np.ndarray:
    seed = [1, *(token + 1 for token in tokens)]
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32)


class BookkeepingEngine:
    """Holds, for every sequence, the tokens it was fed; `can_cut` is False for caches of recurrent models."""

    def __init__(self, limits: Limits, *, can_cut: bool) -> None:
        self.limits, self._can_cut = limits, can_cut
        self.fed = 0
        self.clear()

    def clear(self) -> None:
        self._cells: list[tuple[int, int, set[int]]] = []  # token, position, the sequences that it belongs to
        self._batch: list[tuple[int, int, Sequence[int], bool]] = []

    @property
    def room(self) -> int:
        return self.limits.batch_tokens - len(self._batch)

    def add(self, token: int, *, position: int, sequences: Sequence[int], wanted: bool) -> None:
        assert self.room
        assert sequences
        assert max(sequences) < self.limits.sequences
        self._batch.append((token, position, sequences, wanted))

    def run(self) -> np.ndarray:
        rows = []
        for token, position, sequences, wanted in self._batch:
            before = {tuple(self._tokens(sequence)) for sequence in sequences}
            assert len(before) == 1, "sequences that share a token have the same tokens before it"
            (tokens,) = before
            assert position == len(tokens), "positions are consecutive"
            self._cells.append((token, position, set(sequences)))
            if wanted:
                rows.append(logits_after([*tokens, token]))
        assert len(self._cells) <= self.limits.cells
        self.fed += len(self._batch)
        self._batch = []
        return np.array(rows, dtype=np.float32).reshape(len(rows), VOCABULARY)

    def forget(self, sequence: int, *, start: int = 0) -> bool:
        if start and not self._can_cut:
            return False
        for _, position, sequences in self._cells:
            if position >= start:
                sequences.discard(sequence)
        self._cells = [cell for cell in self._cells if cell[2]]
        return True

    def share(self, source: int, *, target: int, end: int) -> None:
        assert not self._tokens(target)
        for _, position, sequences in self._cells:
            if source in sequences and position < end:
                sequences.add(target)

    def _tokens(self, sequence: int) -> list[int]:
        return [token for token, _, sequences in sorted(self._cells, key=lambda c: c[1]) if sequence in sequences]


# Four different tokens and short sequences, so that beginnings often coincide.
token_lists = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
score_requests = st.lists(
    st.builds(
        lambda first, rest, continuation: ScoreRequest([first, *rest], continuation),
        st.integers(0, 1),
        token_lists,
        token_lists,
    ),
    max_size=12,
)


@given(score_requests, st.integers(1, 5), st.integers(0, 9), st.booleans())
def test_every_plan_feeds_each_sequence_its_own_tokens(
    requests: list[ScoreRequest], sequences: int, more: int, can_cut: bool
) -> None:
    # The longest sequence fed has 7 + 6 - 1 tokens.
    engine = BookkeepingEngine(
        Limits(batch_tokens=sequences + more, cells=12 + more, sequences=sequences), can_cut=can_cut
    )
    for request, found in zip(requests, score(engine, requests), strict=True):
        whole = [*request.context, *request.continuation]
        for place, target in enumerate(request.continuation):
            expected = log_softmax(logits_after(whole[: len(request.context) + place]).astype(np.float64))
            np.testing.assert_allclose(found.logprobs[place], expected[target], atol=1e-5)
            assert found.greedy[place] == (target == expected.argmax())


def fed(requests: Sequence[ScoreRequest], limits: Limits) -> int:
    engine = BookkeepingEngine(limits, can_cut=True)
    score(engine, requests)
    return engine.fed


def test_choices_of_one_token_cost_their_context_once() -> None:
    requests = [ScoreRequest(range(10), [choice]) for choice in range(4)]
    assert fed(requests, Limits(batch_tokens=64, cells=64, sequences=8)) == 10


def test_choices_of_several_tokens_cost_their_context_once() -> None:
    requests = [ScoreRequest([0] * 10, [choice, 1, 2]) for choice in range(4)]
    # Ten tokens of context and, for each choice, all but its last token.
    assert fed(requests, Limits(batch_tokens=64, cells=64, sequences=8)) == 10 + 4 * 2


def test_a_common_beginning_is_computed_once_for_a_whole_task() -> None:
    few_shot = [3] * 20
    requests = [ScoreRequest([*few_shot, a, b, 0], [1]) for a in range(4) for b in range(4)]
    # 20 tokens, then a trie of 4, 16 and 16: each once, although six waves of three sequences go through the cache.
    cost = fed(requests, Limits(batch_tokens=64, cells=64, sequences=3))
    assert cost == 20 + 4 + 16 + 16


def test_a_wave_is_no_larger_than_a_batch_where_it_can_be() -> None:
    requests = [ScoreRequest([n, *[0] * 9], [1]) for n in range(4)] + [ScoreRequest([3] * 30, [1])]
    plan = list(waves(paths(requests), batch_tokens=20, sequences=16, cells=64))
    assert [len(wave.paths) for wave in plan] == [2, 2, 1]


@given(token_lists, token_lists)
def test_the_common_beginning_is_common_and_ends_where_they_differ(first: list[int], second: list[int]) -> None:
    n = common(first, second)
    assert first[:n] == second[:n]
    assert first[n : n + 1] != second[n : n + 1] or len(first) == n or len(second) == n
