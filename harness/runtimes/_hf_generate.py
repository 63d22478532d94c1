"""Generation on a transformers model: a continuous batch over the cache, one token a row and step.

Requests wait in the order they came. Whenever room is left, the next ones are admitted: their prompts run as one
padded pass, give their first tokens, and join the rows that are already running. Then all rows advance a token a
pass. A row that ends leaves at once and makes room. Each token is in host memory when it is yielded, so the caller's
clock is right without a synchronization of its own. Sampled requests draw from a generator of their own seed, so that
a text does not depend on what ran beside it (up to the rounding of the model's own arithmetic).

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.errors import ModelError, Unsupported
from harness.interfaces import GenerateRequest, Token
from harness.runtimes._hf_forward import Forward, Past
from harness.runtimes._hf_kv import read_prompt
from harness.runtimes.batching import Budget
from harness.runtimes.stopping import TextWatcher


@dataclass
class Running:
    """A request while it is waiting or being answered. `next_input` is what its row reads in the next pass."""

    index: int
    request: GenerateRequest
    watcher: TextWatcher
    random: torch.Generator
    next_input: Sequence[int]

    @property
    def longest(self) -> int:
        """Tokens the row may grow to."""
        return len(self.request.prompt) + self.request.max_tokens

    def take(self, token: int) -> Token:
        """Notes the row's next token."""
        self.next_input = [token]
        finish = self.watcher.feed(token)
        return Token(self.index, token, finish, self.watcher.text if finish else None)


def generate(
    forward: Forward,
    requests: Sequence[GenerateRequest],
    *,
    watch: Callable[[GenerateRequest], TextWatcher],
    budget: Budget,
) -> Iterator[Token]:
    """Yields the tokens of all requests as they come."""
    waiting = deque(
        Running(n, request, watch(request), torch.Generator().manual_seed(request.seed), request.prompt)
        for n, request in enumerate(requests)
    )
    # While rows come and go, one may begin behind the padding that another leaves: both lengths count.
    widest = max((row.longest for row in waiting), default=0) + max((r.max_tokens for r in requests), default=0)
    is_batched = widest <= budget.columns
    running: list[Running] = []
    past: Past | None = None
    while waiting or running:
        active = _admitted(waiting, running, budget if is_batched else None)
        if active:
            logits_BV, new = _first_pass(forward, active, exact=not is_batched)
            past = past.compact().join(new) if past is not None else new
            running += active
        else:
            active = running
            picks = [(n, 0) for n in range(len(active))]
            logits_BV, past = forward.extend([row.next_input for row in active], picks=picks, past=past)
        for row, token in zip(list(active), choose(logits_BV, active), strict=True):
            yield row.take(token)
        running, past = _remaining(running, past)


@torch.inference_mode()
def choose(logits_BV: torch.Tensor, rows: Sequence[Running]) -> list[int]:
    """Gives each row's next token: the most likely one, or one drawn at its temperature. Raises ModelError on NaN."""
    best_B, tokens_B = logits_BV.max(-1)
    if not bool(best_B.isfinite().all()):
        raise ModelError("the model's logits are not finite")
    tokens: list[int] = tokens_B.tolist()
    for n, row in enumerate(rows):
        if row.request.temperature > 0:
            # On the host, where a seed means the same on every device.
            weights_V = torch.softmax(logits_BV[n].float().cpu() / row.request.temperature, dim=-1)
            tokens[n] = int(torch.multinomial(weights_V, 1, generator=row.random))
    return tokens


def _admitted(waiting: deque[Running], running: Sequence[Running], budget: Budget | None) -> list[Running]:
    """Takes from `waiting` what may join; without a budget that is one request when none is running."""
    if budget is None:
        return [waiting.popleft()] if waiting and not running else []
    admitted: list[Running] = []
    while waiting and (not (running or admitted) or _fits([*admitted, waiting[0]], running, budget)):
        admitted.append(waiting.popleft())
    return admitted


def _fits(new: Sequence[Running], running: Sequence[Running], budget: Budget) -> bool:
    rows = [*running, *new]
    return (
        len(new) * max(len(row.request.prompt) for row in new) <= budget.tokens
        and len(rows) * max(row.longest for row in rows) <= budget.cached
        and len(rows) <= budget.scored
    )


def _first_pass(forward: Forward, rows: Sequence[Running], *, exact: bool) -> tuple[torch.Tensor, Past]:
    empty = forward.empty(len(rows), exact=exact)
    if empty is None:
        raise Unsupported("this model keeps no key/value cache that this runtime can use, so it cannot generate")
    if forward.rounds:
        return read_prompt(forward, rows[0].request.prompt)
    picks = [(n, len(row.request.prompt) - 1) for n, row in enumerate(rows)]
    logits_BV, past = forward.extend([row.request.prompt for row in rows], picks=picks, past=empty)
    assert past is not None, "a pass that was given a past gives one back"
    return logits_BV, past


def _remaining(running: list[Running], past: Past | None) -> tuple[list[Running], Past | None]:
    keep = [n for n, row in enumerate(running) if row.watcher.finish is None]
    if len(keep) == len(running):
        return running, past
    if not keep or past is None:
        return [], None
    return [running[n] for n in keep], past.select(keep)
