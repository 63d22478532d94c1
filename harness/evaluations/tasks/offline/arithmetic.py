"""Arithmetic: sums made by rule, as a choice among near misses and as a number to write.

Wrong choices lie 1, 2 or 10 away from the right one, so that size alone does not answer. An item's category names its
operation and how many digits the numbers have. A written answer counts when it is the number and nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from harness.interfaces import Artifact

SEED = 2026
ITEMS = 2000
SHOTS = 8
OFFSETS = (-10, -2, -1, 1, 2, 10)
SIGNS = {"plus": "+", "minus": "-", "times": "*"}
KINDS = (("plus", 1), ("minus", 1), ("plus", 2), ("minus", 2), ("times", 1))


def choices(_: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives four-way choices; the examples are sums that are not asked."""
    rng = random.Random(SEED)
    return _split([{**one, **_offered(one["value"], rng)} for one in _drawn(rng)])


def sums(_: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives the same sums to write: the chance of writing a number by guessing is taken as 0."""
    rng = random.Random(SEED)
    return _split([{**one, "answer": str(one["value"]), "chance": 0.0} for one in _drawn(rng)])


def is_number(text: str) -> bool:
    """True when a text is a whole number and nothing else.

    >>> is_number(" -12 "), is_number("12 apples")
    (True, False)
    """
    return re.fullmatch(r"-?[0-9]+", text.strip()) is not None


def _split(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {"test": found[SHOTS:], "fewshot": found[:SHOTS]}


def _drawn(rng: random.Random) -> list[dict[str, Any]]:
    """Gives distinct sums, the kinds in turn as long as a kind has any left."""
    pools = [_all(word, digits) for word, digits in KINDS]
    for pool in pools:
        rng.shuffle(pool)
    longest = max(map(len, pools))
    mixed = [pool[turn] for turn in range(longest) for pool in pools if turn < len(pool)]
    return mixed[: ITEMS + SHOTS]


def _all(word: str, digits: int) -> list[dict[str, Any]]:
    low, high = (2, 9) if digits == 1 else (11, 99)
    pairs = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1) if word != "minus" or a > b]
    value = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}[word]
    return [
        {
            "id": f"{word}-{a}-{b}",
            "category": f"{word}, {digits} digit{'s' if digits > 1 else ''}",
            "question": f"{a} {SIGNS[word]} {b} =",
            "value": value(a, b),
        }
        for a, b in pairs
    ]


def _offered(value: int, rng: random.Random) -> dict[str, Any]:
    wrong = rng.sample([value + offset for offset in OFFSETS if value + offset >= 0], 3)
    offered = [value, *wrong]
    rng.shuffle(offered)
    return {"choices": [str(one) for one in offered], "answer": offered.index(value)}
