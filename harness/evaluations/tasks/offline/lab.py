"""Skills of the lab's models: held-out exercises, written without examples or scored by log-probability.

A prompt stands alone and begins exactly as a training document of `lab-text` does, and its hash says that it was held
out of every one. A model answers by going on to the end of the line. `tools` asks for the first call that answers a
request and nothing more; whole episodes need an environment. The log-probability task asks the first exercises of all
five kinds for the likelihood of the right answer, which moves long before the text that is written does.

Chance is taken as 0: an answer is written. Yet a model that has learnt the form of `qa` and `lookup` and names any of
the words that could be meant is right in every second to sixth question.

Source: `harness.sources.lab.exercises`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from harness.interfaces import Artifact
from harness.sources.lab.exercises import KINDS, Exercise, exercises
from harness.sources.lab.tools import CALL, ERROR, respond

SEED = 2026
ITEMS = 200
DRAWS = 20  # for each item: of arithmetic fewer different prompts are held out than are asked for
LIKELIHOOD_ITEMS = 40  # of each kind

Items = list[dict[str, Any]]


def written(kind: str) -> Callable[[Mapping[str, Artifact]], dict[str, Items]]:
    """Gives a function that gives up to 200 items of a kind; every prompt comes once."""
    return lambda _: {"test": _items(kind, ITEMS)}


def likelihoods(_: Mapping[str, Artifact]) -> dict[str, Items]:
    """Gives the first items of every kind in turn, to be scored; their category is the kind."""
    each = [_items(kind, LIKELIHOOD_ITEMS) for kind in KINDS]
    return {
        "test": [
            {**item, "category": kind}
            for turn in zip(*each, strict=True)
            for kind, item in zip(KINDS, turn, strict=True)
        ]
    }


def is_call(text: str) -> bool:
    """True when a text is one call of the lab's dialect, whether such a tool exists or not.

    >>> is_call("call: add(1,2)"), is_call("call: add 1 and 2")
    (True, False)
    """
    call = text.strip()
    return call.startswith(CALL) and respond(call.removeprefix(CALL)) != f"{ERROR}not a call"


def _items(kind: str, count: int) -> Items:
    drawn: dict[str, Exercise] = {}
    for one in islice(exercises(kind, seed=SEED, split="heldout"), DRAWS * count):
        drawn.setdefault(one.prompt, one)
        if len(drawn) == count:
            break
    return [_item(number, one) for number, one in enumerate(drawn.values())]


def _item(number: int, one: Exercise) -> dict[str, Any]:
    continuation = one.answer.partition("\n")[0]
    return {
        "id": f"{one.kind}-{number}",
        "category": _CATEGORY[one.kind](one),
        "prompt": one.prompt,
        "continuation": continuation,
        "answer": continuation.strip(),
        "chance": 0.0,
    }


def _operation(one: Exercise) -> str:
    signs = [sign for sign in one.prompt if sign in "+-*"]
    return "plus plus" if len(signs) > 1 else {"+": "plus", "-": "minus", "*": "times"}[signs[0]]


_CATEGORY: Mapping[str, Callable[[Exercise], str]] = {
    "arithmetic": _operation,
    "copy": lambda one: one.prompt.partition(":")[0],
    "lookup": lambda one: f"{one.prompt.count('=') - 1} keys",
    "qa": lambda one: one.prompt.rpartition(". ")[2].partition(" ")[0].lower(),
    "tools": lambda one: one.answer.removeprefix("call: ").partition("(")[0],
}
