"""Windows of text that every tokenizer of a family reads alike, cut out of a corpus.

A measure on tokens is only comparable between runtimes when both read the same text as the same tokens, so a window is
a text first: documents are joined until they hold enough tokens, the text is cut where the last wanted token ends, and
it is kept only if encoding it again gives exactly the tokens it was cut by. No document is in two windows, so windows
are independent draws from the corpus. Documents are taken in the order of the hash of their text: fixed, and no run of
neighbouring pages of one package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.errors import SourceError

CHARACTERS_PER_TOKEN = 16
"""More of a text than this many characters a token is never looked at."""

Offsets = Callable[[str], tuple[list[int], list[int]]]
"""Encodes a text; gives the tokens and where in the text each ends."""


@dataclass(frozen=True)
class TextWindow:
    """A text, its tokens, and the offset at which its first token ends."""

    text: str
    tokens: tuple[int, ...]
    first_end: int


def cut_windows(documents: Sequence[str], offsets: Offsets, *, count: int, length: int) -> list[TextWindow]:
    """Gives `count` windows of exactly `length` tokens. Raises SourceError when there is too little text."""
    found: list[TextWindow] = []
    for text in _joined(documents, at_least=length):
        window = _cut(text, offsets, length)
        if window is not None:
            found.append(window)
        if len(found) == count:
            return found
    raise SourceError(
        f"the corpus has only {len(found)} held-out windows of {length} tokens, {count} are asked for",
        remedy="ask for fewer or shorter windows, or choose a larger corpus",
    )


def _joined(documents: Sequence[str], *, at_least: int) -> Iterator[str]:
    """Joins documents until a text has enough characters that it may have enough tokens, with room to spare."""
    parts: list[str] = []
    for document in sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest()):
        parts.append(document.strip())
        if sum(map(len, parts)) >= at_least * CHARACTERS_PER_TOKEN // 2:
            yield "\n\n".join(parts)[: at_least * CHARACTERS_PER_TOKEN]
            parts = []


def _cut(text: str, offsets: Offsets, length: int) -> TextWindow | None:
    tokens, ends = offsets(text)
    if len(tokens) < length:
        return None
    cut = text[: ends[length - 1]]
    again, _ = offsets(cut)
    return TextWindow(cut, tuple(again), ends[0]) if again == tokens[:length] else None
