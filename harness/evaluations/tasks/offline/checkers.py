"""Checkers of instructions: each looks at a text and says whether one instruction was followed.

They are deterministic and look at form, never at meaning, so that nobody has to judge. All look at the text without
surrounding white space, and none passes on an empty one.

Source: the idea of verifiable instructions is that of Zhou et al., "Instruction-Following Evaluation for Large Language
Models", arXiv 2311.07911; prompts and checkers are our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Checker = Callable[..., bool]


def words(text: str) -> list[str]:
    """Gives the words: runs of letters, digits and inner apostrophes or hyphens."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def sentences(text: str) -> list[str]:
    """Gives the sentences: pieces that end in `.`, `!` or `?` followed by white space or the end; a rest counts."""
    pieces = re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip())
    return [piece for piece in pieces if words(piece)]


def is_uppercase(text: str) -> bool:
    """True when no letter is lower case and there are letters."""
    return text.isupper()


def is_lowercase(text: str) -> bool:
    """True when no letter is upper case and there are letters."""
    return text.islower()


def has_no_commas(text: str, *, at_least: int) -> bool:
    """True when there is no comma in `at_least` words or more."""
    return "," not in text and len(words(text)) >= at_least


def contains_words(text: str, *, wanted: Sequence[str]) -> bool:
    """True when every wanted word occurs as a whole word, in any case."""
    return set(map(str.lower, wanted)) <= set(map(str.lower, words(text)))


def avoids_word(text: str, *, unwanted: str, at_least: int) -> bool:
    """True when the unwanted word does not occur as a whole word in `at_least` words or more."""
    found = [word.lower() for word in words(text)]
    return unwanted.lower() not in found and len(found) >= at_least


def has_bullets(text: str, *, count: int) -> bool:
    """True when exactly `count` lines begin with `-`, `*` or `•` and a space, and have words."""
    return sum(bool(re.match(r"\s*[-*•]\s+\S", line)) for line in text.splitlines()) == count


def has_numbered_lines(text: str, *, count: int) -> bool:
    """True when the lines that begin with a number are numbered 1, 2, … `count`."""
    numbers = [int(found[1]) for line in text.splitlines() if (found := re.match(r"\s*(\d{1,4})[.)]\s+\S", line))]
    return numbers == list(range(1, count + 1))


def has_sentences(text: str, *, count: int) -> bool:
    """True when there are exactly `count` sentences."""
    return len(sentences(text)) == count


def has_word_count(text: str, *, low: int, high: int) -> bool:
    """True when the number of words lies between `low` and `high`, both included."""
    return low <= len(words(text)) <= high


def starts_with(text: str, *, phrase: str) -> bool:
    """True when the text starts with the phrase, to the letter."""
    return text.strip().startswith(phrase)


def ends_with(text: str, *, phrase: str) -> bool:
    """True when the text ends with the phrase, to the letter."""
    return text.strip().endswith(phrase)


def is_quoted(text: str) -> bool:
    """True when the whole text stands between double quotation marks."""
    stripped = text.strip()
    return len(stripped) > 2 and stripped[0] in '"“' and stripped[-1] in '"”'


def is_json_with(text: str, *, keys: Sequence[str]) -> bool:
    """True when the text is one JSON object with exactly these keys; a fence of backticks around it is allowed."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), flags=re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def is_one_of(text: str, *, allowed: Sequence[str]) -> bool:
    """True when the text is one of the allowed answers, but for case and a final stop."""
    return text.strip().rstrip(".").lower() in [one.lower() for one in allowed]


def has_title(text: str) -> bool:
    """True when there is a title in double angular brackets: <<title>>."""
    return re.search(r"<<[^<>\n]+>>", text) is not None


CHECKERS: Mapping[str, Checker] = {
    checker.__name__: checker
    for checker in (
        is_uppercase,
        is_lowercase,
        has_no_commas,
        contains_words,
        avoids_word,
        has_bullets,
        has_numbered_lines,
        has_sentences,
        has_word_count,
        starts_with,
        ends_with,
        is_quoted,
        is_json_with,
        is_one_of,
        has_title,
    )
}


def follows(text: str, check: Mapping[str, Any]) -> bool:
    """True when the text is not empty and passes a check: `{"check": "has_bullets", "count": 3}`."""
    arguments = {key: value for key, value in check.items() if key != "check"}
    return bool(text.strip()) and CHECKERS[check["check"]](text, **arguments)
