"""What to run together: turns score requests into few, full forward passes that compute nothing twice.

Three observations make scoring fast. Requests that share their context (the choices of one question) need it once: it
runs as one row, and the continuations branch off its cached keys and values. Contexts that begin alike (the same
few-shot examples) need their common beginning once. And rows of similar length waste little padding when they run
together, so rows are sorted, longest first, which also makes a batch that is too large fail at the start. The plan
depends on the set of requests, not on their order: shuffling them gives the same numbers, bit for bit. Nothing here
touches a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

from harness.interfaces import ScoreRequest

_BRANCH_FROM = 8
"""Contexts shorter than this are repeated: branching off costs a second pass."""
_SHARED_PREFIX = 32
"""Beginnings shorter than this are not looked for."""

Tokens = tuple[int, ...]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Budget:
    """What one forward pass may hold, padding included.

    `tokens` are new tokens, `cached` are tokens whose keys and values are kept, `scored` are positions that go
    through the head, `columns` is the longest padded row for which the model's attention stays exact (its smallest
    sliding window).
    """

    tokens: int
    cached: int
    scored: int
    columns: int


@dataclass(frozen=True, order=True)
class Row:
    """One context with its distinct continuations: a line when there is one, else a tree whose trunk is the context."""

    context: Tokens
    continuations: tuple[Tokens, ...]

    @property
    def is_tree(self) -> bool:
        """True when continuations branch off the context, which then runs alone."""
        return len(self.continuations) > 1

    @property
    def has_branches(self) -> bool:
        """True when some continuation needs a second pass, on the cached context."""
        return self.is_tree and any(len(continuation) > 1 for continuation in self.continuations)

    @property
    def tokens(self) -> Tokens:
        """What goes through the model in the first pass; the last token of a continuation never needs to."""
        return self.context if self.is_tree else self.context + self.continuations[0][:-1]

    @property
    def scored(self) -> int:
        """Positions whose logits the first pass needs."""
        return 1 if self.is_tree else len(self.continuations[0])


@dataclass(frozen=True)
class Branch:
    """A continuation of row `row` of a pack; its first token was scored with the trunk."""

    row: int
    continuation: Tokens


@dataclass(frozen=True)
class Cluster:
    """Packs of rows that all begin with `prefix`, which is computed once."""

    prefix: Tokens
    packs: tuple[tuple[Row, ...], ...]


def plan(requests: Iterable[ScoreRequest], budget: Budget) -> Iterator[Cluster]:
    """Groups requests into clusters of packs; every distinct request appears exactly once."""
    rows = _rows({(tuple(r.context), tuple(r.continuation)) for r in requests if r.continuation}, budget)
    for prefix, members in _clusters(rows, budget):
        # Rows without branches need no cache; kept apart, their length does not count against a sliding window.
        kinds = [[row for row in members if row.has_branches is kind] for kind in (False, True)]
        yield Cluster(prefix, tuple(pack for kind in kinds for pack in _row_packs(kind, len(prefix), budget)))


def branch_packs(rows: Sequence[Row], budget: Budget) -> Iterator[list[Branch]]:
    """Gives what remains of a pack's trees after their trunks: continuations of two tokens and more."""
    trunk = max(len(row.tokens) for row in rows)
    branches = [
        Branch(n, continuation)
        for n, row in enumerate(rows)
        if row.is_tree
        for continuation in row.continuations
        if len(continuation) > 1
    ]
    branches.sort(key=lambda branch: -len(branch.continuation))

    def fits(pack: Sequence[Branch]) -> bool:
        new = len(pack[0].continuation) - 1
        return len(pack) * new <= min(budget.tokens, budget.scored) and len(pack) * (trunk + new) <= budget.cached

    return packed(branches, fits)


def packed(items: Iterable[_Item], fits: Callable[[Sequence[_Item]], bool]) -> Iterator[list[_Item]]:
    """Cuts items, in their order, into the longest runs that fit; one item alone always does."""
    pack: list[_Item] = []
    for item in items:
        if pack and not fits([*pack, item]):
            yield pack
            pack = []
        pack.append(item)
    if pack:
        yield pack


def _rows(pairs: set[tuple[Tokens, Tokens]], budget: Budget) -> list[Row]:
    by_context: defaultdict[Tokens, list[Tokens]] = defaultdict(list)
    for context, continuation in pairs:
        by_context[context].append(continuation)
    longest = max((len(continuation) for _, continuation in pairs), default=0)
    rows: list[Row] = []
    for context, continuations in by_context.items():
        is_single_pass = all(len(continuation) == 1 for continuation in continuations)
        fits = len(context) + longest <= budget.columns
        if is_single_pass or (fits and len(context) >= _BRANCH_FROM):
            rows.append(Row(context, tuple(sorted(continuations))))
        else:
            rows.extend(Row(context, (continuation,)) for continuation in continuations)
    return sorted(rows, key=lambda row: (-len(row.tokens), row))


def _clusters(rows: Sequence[Row], budget: Budget) -> Iterator[tuple[Tokens, list[Row]]]:
    by_start: defaultdict[Tokens, list[Row]] = defaultdict(list)
    for row in rows:
        start = row.context[:_SHARED_PREFIX]
        can_share = budget.columns > 0 and len(row.context) > _SHARED_PREFIX
        by_start[start if can_share else ()].append(row)
    alone = by_start.pop((), [])
    for members in by_start.values():
        prefix = _common_start([row.context[:-1] for row in members])
        # A pass of its own must pay: it is worth taking when it saves a good part of a batch.
        if (len(members) - 1) * len(prefix) >= budget.tokens // 8 and len(members) > 1:
            yield prefix, members
        else:
            alone.extend(members)
    if alone:
        yield (), sorted(alone, key=lambda row: (-len(row.tokens), row))


def _common_start(sequences: Sequence[Tokens]) -> Tokens:
    first, last = min(sequences), max(sequences)
    return tuple(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _row_packs(rows: Sequence[Row], prefix: int, budget: Budget) -> Iterator[tuple[Row, ...]]:
    def fits(pack: Sequence[Row]) -> bool:
        longest = len(pack[0].tokens)
        return (
            len(pack) * (longest - prefix) <= budget.tokens
            and len(pack) * longest <= budget.cached
            and sum(row.scored for row in pack) <= budget.scored
        )

    return (tuple(pack) for pack in packed(rows, fits))
