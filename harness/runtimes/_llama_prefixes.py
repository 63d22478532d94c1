"""Which tokens to compute when many token sequences begin alike: each shared token once.

Sorted, the sequences are the leaves of a trie in depth-first order, so whatever beginning some of them share is
shared by neighbours. A `Wave` is a run of neighbours that go through the model together: its steps are the trie's
nodes in an order llama.cpp accepts (positions of a sequence never decrease, a token names every sequence it belongs
to). From one wave to the next the cache keeps the last sequence, so that a long common beginning, such as few-shot
examples, is computed once for a whole task. Nothing here knows of llama.cpp: the plan is a pure function of the
requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.interfaces import ScoreRequest

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """A result to read off: the log-probability of `target` after `position`, for place `place` of a request."""

    position: int
    request: int
    place: int
    target: int


@dataclass(frozen=True)
class Path:
    """A token sequence to feed, and what to read off along it."""

    tokens: Tokens
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Step:
    """A token to compute, the sequences of the wave it belongs to, and what to read off after it."""

    token: int
    position: int
    sequences: range
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Wave:
    """Paths that go through the model together; `kept[i]` positions of path i are in the cache from the wave before."""

    paths: tuple[Path, ...]
    kept: tuple[int, ...]

    def steps(self) -> Iterator[Step]:
        """Gives the tokens to compute, in order."""
        shared = [*(common(a.tokens, b.tokens) for a, b in zip(self.paths, self.paths[1:], strict=False)), 0]
        wanted = [_by_position(path.readings) for path in self.paths]
        for index, path in enumerate(self.paths):
            begin = max(self.kept[index], shared[index - 1] if index else 0)
            for position in range(begin, len(path.tokens)):
                last = index
                while shared[last] > position:
                    last += 1
                members = range(index, last + 1)
                readings = tuple(reading for member in members for reading in wanted[member].get(position, ()))
                yield Step(path.tokens[position], position, members, readings)


def _by_position(readings: Sequence[Reading]) -> dict[int, list[Reading]]:
    found: dict[int, list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.position, []).append(reading)
    return found


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Gives how many tokens two sequences share at their beginning.

    >>> common((1, 2, 3), (1, 2, 4, 5))
    2
    """
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def paths(requests: Sequence[ScoreRequest]) -> list[Path]:
    """Gives the sequences to feed, sorted; one that is the beginning of another is read off along the longer one.

    The last token of a continuation is scored but never fed.
    """
    fed = sorted(
        ((*request.context, *request.continuation[:-1]), index)
        for index, request in enumerate(requests)
        if request.continuation
    )
    longest_first: list[tuple[Tokens, list[Reading]]] = []
    for tokens, index in reversed(fed):
        if not longest_first or common(tokens, longest_first[-1][0]) < len(tokens):
            longest_first.append((tokens, []))
        first = len(requests[index].context) - 1
        longest_first[-1][1].extend(
            Reading(first + place, index, place, target) for place, target in enumerate(requests[index].continuation)
        )
    return [Path(tokens, tuple(readings)) for tokens, readings in reversed(longest_first)]


def waves(sorted_paths: Sequence[Path], *, batch_tokens: int, sequences: int, cells: int) -> Iterator[Wave]:
    """Groups paths so that a wave fills whole batches, has at most `sequences` paths and fits into `cells` positions.

    A wave is no larger than a batch where it can be: attention in a shared cache costs in proportion to all that is
    in it.
    """
    before: Tokens = ()
    start = 0
    while start < len(sorted_paths):
        first = sorted_paths[start].tokens
        new, held, end = len(first) - common(before, first), len(first), start + 1
        budget = batch_tokens * max(1, -(-new // batch_tokens))
        while end < len(sorted_paths) and end - start < sequences:
            path = sorted_paths[end].tokens
            added = len(path) - common(sorted_paths[end - 1].tokens, path)
            if new + added > budget or held + added > cells:
                break
            new, held, end = new + added, held + added, end + 1
        group = tuple(sorted_paths[start:end])
        # Logits after a kept position are gone, so nothing that is to be read off may be kept.
        limit = min(reading.position for path in group for reading in path.readings)
        yield Wave(group, tuple(min(limit, common(before, path.tokens)) for path in group))
        before, start = group[-1].tokens, end
