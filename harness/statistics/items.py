"""The same items answered by two models: which can be paired, and which cannot and why.

An item counts when both answered it and neither was asked another prompt; what does not count is counted.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.record import Observation
from harness.statistics.contrasts import Pairs

Task = tuple[str, str]
"""An evaluation and the task it asked."""


@dataclass(frozen=True)
class Item:
    """One answered item: its score, what guessing would give, the hash of the prompt really sent, and its cluster.

    Items of one cluster (questions on one passage) are not independent of each other. `truncated` answers were cut at
    the longest length allowed, `unparsed` ones held no answer that could be read; None where that is not known.
    """

    score: float
    chance: float | None
    prompt: str | None
    cluster: str | None = None
    truncated: bool | None = None
    unparsed: bool | None = None


@dataclass(frozen=True)
class Paired:
    """What two sides' items of a task have in common, in the order of `names`; `pairs` is None when nothing is.

    `missing` items only the reference answered, `extra` ones only the candidate, `unlike` ones were asked with other
    prompts. `clusters` gives every pair's cluster, or is None when no item names one.
    """

    pairs: Pairs | None
    names: tuple[str, ...]
    missing: int
    extra: int
    unlike: int
    clusters: tuple[str, ...] | None = None


def scored(rows: Iterable[Observation]) -> dict[Task, dict[str, Item]]:
    """Gives the rows that carry a score, by task and by sample."""
    found: dict[Task, dict[str, Item]] = defaultdict(dict)
    for row in rows:
        if (item := _item(row)) is not None:
            found[row.evaluation, row.task][row.sample] = item
    return dict(sorted(found.items()))


def pair(candidate: Mapping[str, Item], reference: Mapping[str, Item]) -> Paired:
    """Pairs two sides' items by name."""
    both = sorted(candidate.keys() & reference.keys())
    # A prompt's hash may be absent; only two that are there and differ prove another question.
    alike = [name for name in both if not _differ(candidate[name].prompt, reference[name].prompt)]
    return Paired(
        pairs=_pairs(candidate, reference, alike) if alike else None,
        names=tuple(alike),
        missing=len(reference) - len(both),
        extra=len(candidate) - len(both),
        unlike=len(both) - len(alike),
        clusters=_clusters(reference, alike),
    )


def in_random_order(names: Iterable[str]) -> list[str]:
    """Gives names in one fixed order that has nothing to do with what they say, the same for every model and run."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _pairs(candidate: Mapping[str, Item], reference: Mapping[str, Item], names: Sequence[str]) -> Pairs:
    floors = [chance for name in names if (chance := reference[name].chance) is not None]
    return Pairs(
        tuple(candidate[name].score for name in names),
        tuple(reference[name].score for name in names),
        sum(floors) / len(floors) if len(floors) == len(names) else None,
    )


def _clusters(items: Mapping[str, Item], names: Sequence[str]) -> tuple[str, ...] | None:
    if all(items[name].cluster is None for name in names):
        return None
    # An item that names no cluster is one of its own.
    return tuple(items[name].cluster or f"item {name}" for name in names)


def _item(row: Observation) -> Item | None:
    score, chance = row.values.get("score"), row.values.get("chance")
    if not isinstance(score, (int, float)):
        return None
    prompt, cluster = row.values.get("prompt_hash"), row.values.get("cluster")
    truncated, unparsed = row.values.get("truncated"), row.values.get("unparsed")
    return Item(
        score=float(score),
        chance=float(chance) if isinstance(chance, (int, float)) else None,
        prompt=prompt if isinstance(prompt, str) else None,
        cluster=None if cluster is None else str(cluster),
        truncated=truncated if isinstance(truncated, bool) else None,
        unparsed=unparsed if isinstance(unparsed, bool) else None,
    )


def _differ(ours: str | None, theirs: str | None) -> bool:
    return ours is not None and theirs is not None and ours != theirs
