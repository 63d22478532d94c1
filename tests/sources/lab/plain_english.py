"""A stand-in for the packages' prose: sentences of made-up words, so that no test parses thousands of files."""

from __future__ import annotations

import random

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "ar", "en")]


def plain_english(characters: int = 400_000) -> dict[str, list[str]]:
    """Pages by split, as `harness.sources.lab.english.english` gives them."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(3000)]

    def page() -> str:
        return ". ".join(" ".join(rng.choices(words, k=9)).capitalize() for _ in range(8)) + "."

    pages = [page() for _ in range(characters // 400)]
    return {"train": pages[: len(pages) * 9 // 10], "heldout": pages[len(pages) * 9 // 10 :]}
