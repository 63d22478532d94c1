"""Reading: short passages made by rule, and an ending that must be looked up in the passage.

Three people put three things in three places; where is one of the things? Knowing the world does not help and neither
does the most frequent word: every choice is named exactly once before. People, things and places are drawn without
repetition, so an item has one right answer; chance is 1/3.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from harness.interfaces import Artifact

SEED = 2026
ITEMS = 2000
CHOICES = 3
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Karl", "Laura", "Martin")
THINGS = ("key", "book", "lamp", "ball", "hat", "cup", "map", "ring", "coin", "letter", "phone", "spoon", "bottle")
PLACES = ("kitchen", "garden", "garage", "attic", "library", "bedroom", "office", "cellar", "hallway", "shed", "tent")


def items(_: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives the passages with their questions."""
    rng = random.Random(SEED)
    return {"test": [_item(number, rng) for number in range(ITEMS)]}


def _item(number: int, rng: random.Random) -> dict[str, Any]:
    people, things, places = (rng.sample(names, CHOICES) for names in (PEOPLE, THINGS, PLACES))
    asked = rng.randrange(CHOICES)
    told = zip(people, things, places, strict=True)
    passage = " ".join(f"{who} put the {what} in the {where}." for who, what, where in told)
    return {
        "id": f"place-{number}",
        "category": f"told {('first', 'second', 'last')[asked]}",
        "question": f"{passage} Now the {things[asked]} is in the",
        "choices": places,
        "answer": asked,
    }
