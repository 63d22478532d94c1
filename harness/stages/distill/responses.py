"""Prompts with what a model wrote after them, laid side by side, and what a run must remember about them.

Distillation on responses reads a prompt and a response together and learns at the positions that predict the response.
Responses differ in length, so a batch has padding, which is attended to by nobody and counts nowhere. What is written
or counted during a run is kept in parameters that are not trained: those are in every checkpoint.

Shapes: B texts, T tokens, N positions that predict a response's token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.stages.distill.losses import NO_LABEL
from harness.stages.distill.student import Reader, next_tokens

NOT_A_TOKEN = -1


@dataclass(frozen=True)
class Responses:
    """A batch of texts (B, T): which places hold tokens, and the label of each position (B * T,).

    A position whose next token is not part of a response has the label NO_LABEL.
    """

    tokens_BT: Tensor
    mask_BT: Tensor
    labels: Tensor

    @classmethod
    def lay_out(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Responses:
        """Lays out texts of unequal length, padded behind. Every prompt and every response has a token."""
        assert all(prompts), "a prompt has no token"
        assert all(responses), "a response has no token"
        texts = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        shape = (len(texts), max(map(len, texts)))
        tokens_BT = torch.zeros(shape, dtype=torch.long)
        mask_BT = torch.zeros(shape, dtype=torch.long)
        wanted_BT = torch.full(shape, NO_LABEL)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            tokens_BT[row, : len(text)] = torch.tensor(text)
            mask_BT[row, : len(text)] = 1
            wanted_BT[row, len(prompt) : len(text)] = tokens_BT[row, len(prompt) : len(text)]
        return cls(tokens_BT, mask_BT, next_tokens(wanted_BT))

    @property
    def tokens(self) -> int:
        """How many tokens there are to read."""
        return int(self.mask_BT.sum())

    @property
    def targets(self) -> Tensor:
        """The tokens of all responses (N,), one text after the other."""
        return self.labels[self.labels != NO_LABEL]

    def rows(self) -> Iterator[slice]:
        """Gives for every text where its response is among the N positions."""
        start = 0
        for count in (self.labels.view(self.tokens_BT.shape) != NO_LABEL).sum(dim=1).tolist():
            yield slice(start, start + count)
            start += count

    def logits(self, reader: Reader) -> Tensor:
        """Gives a model's logits (N, V) at the positions that predict a response's token."""
        on = reader.model.device
        logits_NV = reader.logits(self.tokens_BT.to(on), mask_BT=self.mask_BT.to(on))
        return logits_NV[(self.labels != NO_LABEL).to(on)]


class Tally(torch.nn.Module):
    """Totals by name, added up over a run."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.totals = torch.nn.Parameter(torch.zeros(len(names), dtype=torch.float64), requires_grad=False)

    def add(self, **amounts: float) -> None:
        """Adds to the totals of these names."""
        for name, amount in amounts.items():
            self.totals[self.names.index(name)] += amount

    def total(self, name: str) -> float:
        """Gives one total."""
        return float(self.totals[self.names.index(name)])


class Drafts(torch.nn.Module):
    """Responses by number, at most `length` tokens each, until others are written in their place."""

    def __init__(self, count: int, length: int) -> None:
        super().__init__()
        self.tokens_NT = torch.nn.Parameter(torch.full((count, length), NOT_A_TOKEN), requires_grad=False)

    def write(self, number: int, tokens: Sequence[int]) -> None:
        """Puts a response in the place of the one with that number."""
        self.tokens_NT[number] = NOT_A_TOKEN
        self.tokens_NT[number, : len(tokens)] = torch.tensor(tokens)

    def read(self, number: int) -> list[int]:
        """Gives the response with that number."""
        return [token for token in self.tokens_NT[number].tolist() if token != NOT_A_TOKEN]
