"""Scoring on a transformers model: the plan of `batching`, carried out pass by pass.

A pass asks for the logits of some positions and for the log-probability of one or more tokens at each (all first
tokens of a question's choices hang on the same position). Log-probabilities are computed in float32 whatever the
model computes in, a block of positions at a time, because a vocabulary in float32 is larger than the model's own
activations.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from harness.errors import ModelError
from harness.interfaces import Scored, ScoreRequest
from harness.runtimes._hf_forward import Forward, Past, Pick
from harness.runtimes.batching import Budget, Cluster, Row, Tokens, branch_packs, plan

_BLOCK = 128
"""Positions whose logits are held in float32 at a time."""

Slot = tuple[Tokens, Tokens, int]
"""Context, continuation and the place in the continuation: where a log-probability belongs."""
Answers = dict[Slot, tuple[float, bool]]


@dataclass
class Wanted:
    """The positions of one pass and the tokens to score at each."""

    picks: list[Pick] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)

    def at(self, pick: Pick, wanted: Iterable[tuple[int, Slot]]) -> None:
        """Asks for tokens at one position."""
        for token, slot in wanted:
            self.tokens.append((len(self.picks), token))
            self.slots.append(slot)
        self.picks.append(pick)

    def answers(self, logits_NV: torch.Tensor) -> Answers:
        """Gives what was asked for. Raises ModelError when a log-probability is not finite."""
        places, tokens = zip(*self.tokens, strict=True)
        logprobs, best = token_logprobs(logits_NV, places, tokens)
        return {
            slot: (logprob, winner == token)
            for slot, token, logprob, winner in zip(self.slots, tokens, logprobs, best, strict=True)
        }


def score(forward: Forward, requests: Sequence[ScoreRequest], *, budget: Budget) -> list[Scored]:
    """Scores every request, in the order given."""
    answers: Answers = {}
    for cluster in plan(requests, budget):
        answers |= _score_cluster(forward, cluster, budget)
    return [_collect(answers, tuple(request.context), tuple(request.continuation)) for request in requests]


@torch.inference_mode()
def token_logprobs(
    logits_NV: torch.Tensor, places: Sequence[int], tokens: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Gives the log-probability of each token at its place, and the most likely token there."""
    blocks = [(block.logsumexp(-1), block.argmax(-1)) for block in (b.float() for b in logits_NV.split(_BLOCK))]
    norm_N, best_N = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    places_Q = torch.tensor(places, device=logits_NV.device)
    tokens_Q = torch.tensor(tokens, device=logits_NV.device)
    logprobs_Q = logits_NV[places_Q, tokens_Q].float() - norm_N[places_Q]
    if not bool(logprobs_Q.isfinite().all()):
        raise ModelError(f"{int((~logprobs_Q.isfinite()).sum())} of {len(tokens)} log-probabilities are not finite")
    return logprobs_Q.tolist(), best_N[places_Q].tolist()


def _score_cluster(forward: Forward, cluster: Cluster, budget: Budget) -> Answers:
    answers: Answers = {}
    prefix: Past | None = None
    if cluster.prefix:
        _, prefix = forward.extend([cluster.prefix], picks=[(0, 0)], past=forward.empty(1))
    for pack in cluster.packs:
        wanted = _first_pass(pack, skip=len(cluster.prefix))
        past = forward.empty(len(pack)) if pack[0].has_branches else None
        if prefix is not None:
            past = prefix.select([0] * len(pack))
        logits_NV, past = forward.extend(
            [row.tokens[len(cluster.prefix) :] for row in pack], picks=wanted.picks, past=past
        )
        answers |= wanted.answers(logits_NV)
        if past is not None:
            answers |= _score_branches(forward, pack, past, budget)
    return answers


def _first_pass(pack: Sequence[Row], *, skip: int) -> Wanted:
    wanted = Wanted()
    for n, row in enumerate(pack):
        last = len(row.context) - 1 - skip
        wanted.at((n, last), ((cont[0], (row.context, cont, 0)) for cont in row.continuations))
        if not row.is_tree:
            cont = row.continuations[0]
            for place in range(1, len(cont)):
                wanted.at((n, last + place), [(cont[place], (row.context, cont, place))])
    return wanted


def _score_branches(forward: Forward, pack: Sequence[Row], past: Past, budget: Budget) -> Answers:
    answers: Answers = {}
    for branches in branch_packs(pack, budget):
        wanted = Wanted()
        for n, branch in enumerate(branches):
            cont = branch.continuation
            for place in range(1, len(cont)):
                wanted.at((n, place - 1), [(cont[place], (pack[branch.row].context, cont, place))])
        inputs = [branch.continuation[:-1] for branch in branches]
        trunks = past.select([branch.row for branch in branches])
        logits_NV, _ = forward.extend(inputs, picks=wanted.picks, past=trunks)
        answers |= wanted.answers(logits_NV)
    return answers


def _collect(answers: Answers, context: Tokens, continuation: Tokens) -> Scored:
    found = [answers[context, continuation, place] for place in range(len(continuation))]
    return Scored([logprob for logprob, _ in found], [is_greedy for _, is_greedy in found])
