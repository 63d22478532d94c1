"""From a text to what it is recognized by: counts of short pieces, and which pieces are worth counting.

A manner shows in what is frequent, not in what is rare: in function words, in habitual turns of phrase, in the order of
parts of speech. So the pieces that matter are those found in most texts of some author, and a text is a vector of how
often it has each. A piece counts as ln(1 + n): a model that falls into a loop says one thing fifty times, and the
fiftieth time tells no more about its teacher than the second.

Shapes: N texts, F features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import Unsupported

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Features = Literal["ngrams", "characters", "pos"]
FEATURES: tuple[Features, ...] = get_args(Features)
TOP: Mapping[Features, int] = {"ngrams": 500, "characters": 500, "pos": 50}
"""How many of each teacher's most frequent pieces are kept; 50 templates are the paper's number."""

WORDS = (1, 2, 3)
CHARACTERS = (2, 3, 4)
TEMPLATE = 4
TAGGER = "averaged_perceptron_tagger_eng"

Pieces = Counter[str]
Tag = Callable[[Sequence[str]], Sequence[str]]
"""Gives a part of speech for each word."""


def reader(features: Features) -> Callable[[str], Pieces]:
    """Gives the function that takes a text apart. Raises Unsupported when a tagger is asked for and not there."""
    match features:
        case "ngrams":
            return ngrams
        case "characters":
            return characters
        case "pos":
            tag = _tagger()
            return lambda text: templates(text, tag=tag)


def ngrams(text: str) -> Pieces:
    """Counts runs of one to three words, in lower case; a punctuation mark is a word.

    >>> sorted(ngrams("No. No!"))
    ['!', '.', '. no', '. no !', 'no', 'no !', 'no .', 'no . no']
    """
    return _runs(words(text.lower()), WORDS, between=" ")


def characters(text: str) -> Pieces:
    """Counts runs of two to four characters; white space of any kind and length is one space, and capitals differ.

    >>> sorted(characters("a b").items())
    [(' b', 1), ('a ', 1), ('a b', 1)]
    """
    return _runs(" ".join(text.split()), CHARACTERS, between="")


def templates(text: str, *, tag: Tag) -> Pieces:
    """Counts runs of four parts of speech."""
    return _runs(tag(words(text)), (TEMPLATE,), between=" ")


def words(text: str) -> list[str]:
    """Cuts a text into runs of letters and digits, and single marks.

    >>> words("It's 3.5 %")
    ['It', "'", 's', '3', '.', '5', '%']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def _runs(items: Sequence[str], lengths: Iterable[int], *, between: str) -> Pieces:
    def every() -> Iterator[str]:
        for length in lengths:
            for start in range(len(items) - length + 1):
                yield between.join(items[start : start + length])

    return Counter(every())


def vocabulary(texts: Sequence[Pieces], authors: Sequence[str], *, top: int) -> tuple[str, ...]:
    """Gives the union, over authors, of the `top` pieces that are in most of an author's texts, sorted.

    Of pieces in equally many texts the alphabetically first are taken, so that the choice has no chance in it.
    """
    chosen: set[str] = set()
    for author in set(authors):
        holding = Counter(piece for text, by in zip(texts, authors, strict=True) if by == author for piece in text)
        chosen.update(sorted(holding, key=lambda piece: (-holding[piece], piece))[:top])
    return tuple(sorted(chosen))


def matrix(texts: Sequence[Pieces], pieces: Sequence[str]) -> csr_array:
    """Gives ln(1 + count) of every piece in every text (N, F)."""
    import numpy as np
    from scipy.sparse import csr_array

    place = {piece: index for index, piece in enumerate(pieces)}
    rows, columns, counts = list[int](), list[int](), list[int]()
    for row, text in enumerate(texts):
        for piece in sorted(text.keys() & place.keys()):
            rows.append(row)
            columns.append(place[piece])
            counts.append(text[piece])
    values = np.log1p(np.asarray(counts, dtype=np.float64))
    return csr_array((values, (rows, columns)), shape=(len(texts), len(pieces)))


def _tagger() -> Tag:
    """Gives nltk's English tagger. Raises Unsupported without nltk or its data."""
    try:
        from nltk.tag.perceptron import PerceptronTagger

        tagger = PerceptronTagger()
    except ImportError:
        remedy = "pip install nltk, or use `features: ngrams`"
        raise Unsupported("parts of speech are tagged by nltk, which is not installed", remedy=remedy) from None
    except LookupError:
        raise Unsupported(
            f"nltk's data {TAGGER!r} are not on this machine",
            remedy=f"python -m nltk.downloader {TAGGER}, or use `features: ngrams`, which needs none",
        ) from None
    return lambda said: [str(part) for _, part in tagger.tag(list(said))]
