"""Exercises with known answers, drawn without end from seeded generators.

| kind | prompt and answer | different prompts |
|---|---|---|
| `arithmetic` | `27+15=42`, `21-8=13`, `7*6=42`, `3+9+4=16` | 2,465 in all |
| `copy` | `copy: sun box -> sun box`, `reverse: k b d -> d b k` | beyond counting |
| `lookup` | `lookup: sun=47 box=12 dog=90; box=12` | beyond counting |
| `qa` | `told: Anna has the red ball. Tom has the grey cup. Who has the cup? Tom` | beyond counting |
| `tools` | `user: ...`, then calls, results and the answer; see `tools` | about 9,300 |

An exercise is named by its kind, a seed and an index, and drawn with replacement: where prompts are few they come
again. Whether a prompt is for training or held out is decided by its hash alone, one in twenty being held out, so no
seed ever shows in training what another one asks. The forms are made for small models and few tokens: a prompt ends
where byte-level tokenizers that split digits end a token, so it reads alone as it does before its answer; names and
things are few and short and follow a space wherever they stand, so they are the same tokens in question and answer;
numbers stay below thirty and are mostly smaller, or below ten in products.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.errors import closest
from harness.sources.corpus import Split
from harness.sources.docstrings import is_heldout
from harness.sources.lab.tools import draw_episode


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LARGEST_OPERANDS: Final = (9, 19, 29)  # equally often: what small sums teach is needed for the larger ones
LETTERS: Final = tuple("abcdefghijklmnopqrstuvwxyz")
WORDS: Final = _words(
    "ant bag bed bird boat bus cake cat cow dog door duck farm fish frog goat hand hill leaf milk moon nest pig rain"
    " road salt sand ship shoe sky snow sun tree wall wind wolf"
)
NAMES: Final = _words("Anna Ben Clara Dan Emma Fred Grace Hugo Ida Jack Kate Leo Mary Nick Olga Tom")
THINGS: Final = _words("apple bag ball bell book bowl box cup fork hat key lamp map pen ring rope")
COLOURS: Final = _words("black blue brown green grey pink red white")
PLACES: Final = _words("attic barn bath cave cellar garden hall kitchen office park shop tower")

Drawn = tuple[str, str]


@dataclass(frozen=True)
class Exercise:
    """A prompt and the one right way to go on. The text of an exercise is both and a newline."""

    kind: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return f"{self.prompt}{self.answer}\n"

    @property
    def split(self) -> Split:
        """Where the exercise belongs, by the hash of its prompt."""
        return "heldout" if is_heldout(f"{self.kind} {self.prompt}") else "train"


def exercises(kind: str, *, seed: int, split: Split) -> Iterator[Exercise]:
    """Yields exercises of a kind without end; the one at an index depends on kind, seed, split and index alone.

    Raises ValueError for a kind there is not.
    """
    if kind not in _DRAW:
        hint = closest(kind, KINDS)
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}" + (f"; {hint}" if hint else ""))
    return (_exercise(kind, random.Random(f"{kind}/{seed}/{index}"), split) for index in itertools.count())


def _exercise(kind: str, rng: random.Random, split: Split) -> Exercise:
    while True:
        drawn = Exercise(kind, *_DRAW[kind](rng))
        if drawn.split == split:
            return drawn


def _arithmetic(rng: random.Random) -> Drawn:
    form = rng.choices(("plus", "minus", "times", "three"), weights=(45, 25, 15, 15))[0]
    if form == "three":
        digits = [rng.randint(0, 9) for _ in range(3)]
        return "+".join(map(str, digits)) + "=", str(sum(digits))
    largest = 9 if form == "times" else rng.choice(LARGEST_OPERANDS)
    a, b = rng.randint(0, largest), rng.randint(0, largest)
    if form == "plus":
        return f"{a}+{b}=", str(a + b)
    if form == "times":
        return f"{a}*{b}=", str(a * b)
    return f"{max(a, b)}-{min(a, b)}=", str(abs(a - b))


def _copy(rng: random.Random) -> Drawn:
    pool, longest = rng.choice(((LETTERS, 6), (WORDS, 5)))
    sequence = [rng.choice(pool) for _ in range(rng.randint(2, longest))]
    order = rng.choices(("copy", "reverse"), weights=(2, 1))[0]
    written = sequence if order == "copy" else sequence[::-1]
    return f"{order}: {' '.join(sequence)} ->", f" {' '.join(written)}"


def _lookup(rng: random.Random) -> Drawn:
    keys = rng.sample(WORDS, rng.randint(2, 5))
    are_numbers = rng.random() < 0.5
    values = [str(rng.randint(10, 99)) if are_numbers else rng.choice(COLOURS) for _ in keys]
    listed = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    asked = rng.randrange(len(keys))
    return f"lookup: {listed}; {keys[asked]}=", values[asked]


def _qa(rng: random.Random) -> Drawn:
    count = rng.choice((1, 2, 2, 2))
    people, asked = rng.sample(NAMES, count), rng.randrange(count)
    if rng.random() < 0.3:
        places = rng.sample(PLACES, count)
        told = " ".join(f"{name} is in the {place}." for name, place in zip(people, places, strict=True))
        return f"told: {told} Where is {people[asked]}?", f" {places[asked]}"
    things, colours = rng.sample(THINGS, count), rng.sample(COLOURS, count)
    told = " ".join(
        f"{name} has the {colour} {thing}." for name, colour, thing in zip(people, colours, things, strict=True)
    )
    question, answer = rng.choice(
        (
            (f"Who has the {things[asked]}?", people[asked]),
            (f"What does {people[asked]} have?", things[asked]),
            (f"Which colour is the {things[asked]}?", colours[asked]),
        )
    )
    return f"told: {told} {question}", f" {answer}"


def _tools(rng: random.Random) -> Drawn:
    episode = draw_episode(rng)
    return episode.prompt, episode.answer


_DRAW: Final[Mapping[str, Callable[[random.Random], Drawn]]] = {
    "arithmetic": _arithmetic,
    "copy": _copy,
    "lookup": _lookup,
    "qa": _qa,
    "tools": _tools,
}
KINDS: Final = tuple(_DRAW)
