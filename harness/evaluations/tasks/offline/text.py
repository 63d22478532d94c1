"""Reading and language modelling on held-out text: the next word of a passage, and the cost of whole passages.

The text is the held-out part of the docstring corpus, which no stage trains on. A passage ends in the middle of a
sentence, before a word of at least four letters that it has already used, so that reading it helps. The word is to be
chosen among three others that the passage uses (`offline_cloze`, chance 1/4) or to be what the model would write
(`offline_next_word`). Costs are bits per byte, which do not depend on the tokenizer.

Source: for the forms, Hill et al., "The Goldilocks Principle", ICLR 2016 (arXiv 1511.02301), and Paperno et al., "The
LAMBADA dataset", ACL 2016 (arXiv 1606.06031).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from typing import Any

from harness.interfaces import Artifact
from harness.sources.corpus import read_documents
from harness.spec import Need

NEED = Need(name="corpus", source="docstrings:default")
SEED = 2026
ITEMS = 1000
WORDS = (30, 60)  # of a passage before its last word
CHARACTERS = 800  # of a passage whose cost is measured
WORD = re.compile(r"[A-Za-z]{4,}")
PROSE = re.compile(r"[A-Z](?!.*(>>>|---|===|::| : )).*[a-z][.]", re.DOTALL)  # sentences, no code, lists or headings


def clozes(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives passages without their last word, and four words of the passage, one of them right."""
    return {"test": [item for one in _endings(artifacts) if (item := _cloze(one))]}


def next_words(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives passages without their last word, which is the target. Chance is taken as 0: any word could come."""
    return {"test": [{**one, "chance": 0.0} for one in _endings(artifacts)]}


def passages(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives the beginnings of documents that are long enough to be cut at the same length."""
    documents = [one for one in _shuffled(artifacts, random.Random(SEED)) if len(one) >= CHARACTERS]
    return {"test": [{"id": _name(text), "text": text} for one in documents[:ITEMS] for text in [one[:CHARACTERS]]]}


def has_words(text: str) -> bool:
    """True when a text has a letter or a digit: the least that any answer has."""
    return any(map(str.isalnum, text))


def _shuffled(artifacts: Mapping[str, Artifact], rng: random.Random) -> list[str]:
    documents = sorted(read_documents(artifacts[NEED.name], "heldout"))
    rng.shuffle(documents)
    return documents


def _endings(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    return [item for document in _shuffled(artifacts, rng) if (item := _ending(document, rng))][:ITEMS]


def _ending(document: str, rng: random.Random) -> dict[str, Any] | None:
    prose = [" ".join(part.split()) for part in document.split("\n\n") if PROSE.fullmatch(part.strip())]
    words = " ".join(prose).split(" ")
    ends = [
        place
        for place in range(WORDS[0], min(len(words), WORDS[1] + 1))
        if WORD.fullmatch(words[place]) and words[place] in words[:place] and not words[place - 1].endswith((".", ":"))
    ]
    if not ends:
        return None
    end = rng.choice(ends)
    passage = " ".join(words[:end])
    return {"id": _name(passage), "passage": passage, "word": words[end]}


def _cloze(ending: dict[str, Any]) -> dict[str, Any] | None:
    rng = random.Random(f"{SEED}/{ending['id']}")
    right = ending["word"]
    used = {word.lower(): word for word in ending["passage"].split(" ") if WORD.fullmatch(word)}
    others = [word for lower, word in sorted(used.items()) if lower != right.lower()]
    if len(others) < 3:
        return None
    choices = [right, *rng.sample(others, 3)]
    rng.shuffle(choices)
    return {"id": ending["id"], "passage": ending["passage"], "choices": choices, "answer": choices.index(right)}


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
