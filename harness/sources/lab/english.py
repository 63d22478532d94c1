"""Plain English for small models: the prose of the docstrings that installed packages carry.

Reference pages are half prose and half tables, signatures and examples, which cost a small model its capacity. So a
page is cut into blocks (lines of one indentation) and only those are kept that read as sentences: ASCII, at least 30
characters, from a capital or a quotation mark to a full stop, nearly all letters and spaces, no code and no markup. A
block that was said before, on any page, is left out, so no held-out sentence is one of training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Final

from harness.interfaces import Artifact, BuildReport, Progress, StageContext
from harness.record import ArtifactFacts
from harness.sources.corpus import Split, read_documents
from harness.sources.docstrings import Docstrings

SOURCE: Final = Docstrings("default")
SHORTEST_BLOCK: Final = 30
SHORTEST_DOCUMENT: Final = 100
LETTERS_AND_SPACES: Final = 0.88

_CODE: Final = re.compile(r">>>|---|===|\.\. |\.\.\.|[<>{}\\|~^@#]")
_SENTENCES: Final = re.compile(r"""["'`*A-Z].*[.!?:)]""")


def english(context: StageContext) -> dict[Split, list[str]]:
    """Gives the prose of the default docstring corpus by split, a document a page, in the order of the corpus.

    Reads some thousand files, which takes half a minute, once for a scratch folder. Notes the versions of the packages
    in the report.
    """
    folder = context.scratch / "docstrings"
    _fetched_once(folder, context)
    corpus = Artifact(folder, ArtifactFacts(lineage=(), format="text", digest="", size_bytes=0))
    said: set[str] = set()
    splits: tuple[Split, ...] = ("train", "heldout")
    return {split: list(_new_prose(read_documents(corpus, split), said)) for split in splits}


def _fetched_once(folder: Path, context: StageContext) -> None:
    """Puts the docstrings into `folder` unless they are there, whole and of these packages; reports their notes."""
    notes, wanted = folder / "notes.json", SOURCE.fingerprint
    found = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    if found.get("fingerprint") != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        notes.unlink(missing_ok=True)
        report = BuildReport()
        SOURCE.fetch(folder, context=replace(context, progress=_within(context.progress, 0.9), report=report))
        found = {"fingerprint": wanted, "notes": report.notes}
        aside = notes.with_suffix(".partial")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.replace(notes)
    context.report.notes |= found["notes"]


def _within(progress: Progress, share: float) -> Progress:
    return lambda done, told: progress(None if done is None else share * done, told)


def _new_prose(documents: list[str], said: set[str]) -> Iterator[str]:
    for document in documents:
        kept = [block for block in dict.fromkeys(prose(document)) if block not in said]
        said.update(kept)
        text = "\n".join(kept)
        if len(text) >= SHORTEST_DOCUMENT:
            yield text


def prose(document: str) -> list[str]:
    """Gives the blocks of a page that read as sentences, each on one line."""
    lines = ((len(line) - len(line.lstrip()), line.split()) for line in document.split("\n"))
    blocks = groupby(lines, key=lambda line: (line[0], bool(line[1])))
    told = (" ".join(word for _, words in block for word in words) for _, block in blocks)
    return [block for block in told if _is_prose(block)]


def _is_prose(block: str) -> bool:
    plain = sum(character.isalpha() or character == " " for character in block)
    return (
        len(block) >= SHORTEST_BLOCK
        and block.isascii()
        and plain >= LETTERS_AND_SPACES * len(block)
        and _SENTENCES.fullmatch(block) is not None
        and _CODE.search(block) is None
    )
