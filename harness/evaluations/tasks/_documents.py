"""Which of a task's documents are asked, under what names, and in what order.

A document has one name in every run: its own `id` if it is one of ours, else the hash of its content, and the second of
two equal documents is `…-2`, counted in the task's order. Names are given before anything is chosen or shuffled, so a
part of a task asks documents under the names that the whole task gives them.

Parts serve comparisons that look several times and may stop early. Names are put into one order that has nothing to do
with what they say; the k-th of K parts takes the k-th of K nearly equal pieces of it. Each part is a random sample of
the task, no two parts share a document, and all parts together are the task.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.statistics.items import in_random_order

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A document's name and the requests that ask it."""

    sample: str
    requests: Sequence[Any]


def content_hash(plain: object) -> str:
    """Gives 12 hexadecimal digits of the SHA-256 of canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def told_apart(names: Iterable[str]) -> list[str]:
    """Gives every name once: the second of two equal ones becomes `…-2`.

    >>> told_apart(["a", "b", "a", "a"])
    ['a', 'b', 'a-2', 'a-3']
    """
    apart: dict[str, None] = {}
    for name in names:
        unique, number = name, 1
        while unique in apart:
            number += 1
            unique = f"{name}-{number}"
        apart[unique] = None
    return list(apart)


def in_part(names: Sequence[str], part: Sequence[int] | None) -> set[str]:
    """Gives the names of part `[k, K]`; all of them without a part."""
    if part is None:
        return set(names)
    number, count = part
    return {name for place, name in enumerate(in_random_order(names)) if place * count // len(names) == number - 1}


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Gives items in an order drawn with the seed; with seed 0 as they came."""
    return random.Random(seed).sample(items, len(items)) if seed else list(items)
