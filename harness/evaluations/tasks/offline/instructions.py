"""Instruction following: a small thing to write and a form to write it in, checked by rule.

Every item asks for something easy about a topic and for one form, sometimes two. The item is passed when every
check is. Chance is what a model that reads the topic and not the instruction would score: the share of a few bland
answers that happen to have the form.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from harness.evaluations.tasks.offline.checkers import follows
from harness.interfaces import Artifact

SEED = 2026
ITEMS = 400
TOPICS = (
    *("dogs", "rain", "bread", "music", "winter", "trees", "books", "the sea", "bicycles", "coffee", "the moon"),
    *("football", "gardens", "trains", "sleep", "birds", "cooking", "mountains", "computers", "friendship"),
)
KEYWORDS = ("always", "bright", "careful", "every", "gentle", "happy", "little", "morning", "never", "quiet", "simple")
CLOSINGS = ("That is all.", "The end.", "Thank you for reading.", "Have a nice day.")
OPENINGS = ("Once upon a time", "In short,", "I think that", "Dear reader,")
BLAND = (
    "I like {topic}.",
    "There are many interesting things to say about {topic}, and people have different opinions about them.",
    "{topic} can be a source of joy for many people. It is a part of everyday life, and it has a long history. "
    "Many people enjoy it, and it is often talked about.",
    "Sure! Here is a short text about {topic}.\n\nIt is a topic that many people like, and it can be very useful.",
)

Form = tuple[str, dict[str, Any]]


def items(_: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives prompts with their checks, the forms in turn."""
    rng = random.Random(SEED)
    names = list(FORMS)
    found: list[dict[str, Any]] = []
    for number in range(ITEMS):
        if number % len(names) == 0:
            rng.shuffle(names)
        found.append(_item(number, names[number % len(names)], rng))
    return {"test": found}


def judge(document: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Gives `followed` (every check passed) and `checks_followed` (the share of them), each 0 to 1."""
    passed = [follows(str(results[0]), check) for check in json.loads(document["checks"])]
    return {"followed": float(all(passed)), "checks_followed": sum(passed) / len(passed)}


def _item(number: int, name: str, rng: random.Random) -> dict[str, Any]:
    topic = rng.choice(TOPICS)
    forms = [FORMS[name](rng)]
    if name in COMBINABLE and rng.randrange(2):
        forms.append(FORMS[rng.choice(CASES)](rng))
    checks = [check for _, check in forms]
    bland = [text.format(topic=topic) for text in BLAND]
    return {
        "id": f"{name}-{number}",
        "category": name,
        "prompt": f"Write about {topic}. {' '.join(sentence for sentence, _ in forms)}",
        "checks": json.dumps(checks, sort_keys=True),
        "chance": sum(all(follows(text, check) for check in checks) for text in bland) / len(bland),
    }


def _uppercase(_: random.Random) -> Form:
    return "Use only capital letters.", {"check": "is_uppercase"}


def _lowercase(_: random.Random) -> Form:
    return "Use only small letters, no capitals at all.", {"check": "is_lowercase"}


def _keyword(rng: random.Random) -> Form:
    word = rng.choice(KEYWORDS)
    return f'Use the word "{word}" in one short sentence.', {"check": "contains_words", "wanted": [word]}


def _two_keywords(rng: random.Random) -> Form:
    chosen = rng.sample(KEYWORDS, 2)
    return f'Use the words "{chosen[0]}" and "{chosen[1]}".', {"check": "contains_words", "wanted": chosen}


def _bullets(rng: random.Random) -> Form:
    count = rng.choice((2, 3, 4))
    return (
        f"Answer with exactly {count} bullet points, each of a few words, each on a line that starts with a hyphen.",
        {"check": "has_bullets", "count": count},
    )


def _numbered(rng: random.Random) -> Form:
    count = rng.choice((3, 4))
    return (
        f"Give a numbered list of exactly {count} things, each of a few words.",
        {"check": "has_numbered_lines", "count": count},
    )


def _sentences(rng: random.Random) -> Form:
    count = rng.choice((1, 2))
    return (
        f"Write exactly {count} short sentence{'s' if count > 1 else ''}.",
        {"check": "has_sentences", "count": count},
    )


def _brief(rng: random.Random) -> Form:
    most = rng.choice((10, 15, 20))
    return f"Use at most {most} words.", {"check": "has_word_count", "low": 2, "high": most}


def _opening(rng: random.Random) -> Form:
    phrase = rng.choice(OPENINGS)
    return f'Start your answer with "{phrase}"', {"check": "starts_with", "phrase": phrase}


def _closing(rng: random.Random) -> Form:
    phrase = rng.choice(CLOSINGS)
    return (
        f'Write one sentence, then finish with exactly this: "{phrase}"',
        {"check": "ends_with", "phrase": phrase},
    )


def _quoted(_: random.Random) -> Form:
    return "Put your whole answer, one sentence, in double quotation marks.", {"check": "is_quoted"}


def _json(rng: random.Random) -> Form:
    keys = rng.choice((["title", "text"], ["name", "kind"], ["word", "meaning"]))
    return (
        f'Answer only with a JSON object that has the keys "{keys[0]}" and "{keys[1]}".',
        {"check": "is_json_with", "keys": keys},
    )


def _title(_: random.Random) -> Form:
    return (
        "Begin with a title in double angular brackets, such as <<title>>, then one sentence.",
        {"check": "has_title"},
    )


def _no_commas(_: random.Random) -> Form:
    return "Write one sentence of at least five words without any comma.", {"check": "has_no_commas", "at_least": 5}


FORMS: Mapping[str, Callable[[random.Random], Form]] = {
    "uppercase": _uppercase,
    "lowercase": _lowercase,
    "keyword": _keyword,
    "two keywords": _two_keywords,
    "bullets": _bullets,
    "numbered": _numbered,
    "sentences": _sentences,
    "brief": _brief,
    "opening": _opening,
    "closing": _closing,
    "quoted": _quoted,
    "json": _json,
    "title": _title,
    "no commas": _no_commas,
}
CASES = ("uppercase", "lowercase")
COMBINABLE = ("keyword", "two keywords", "brief", "no commas", "quoted")  # with a case; others contradict one
