"""`lab-text:all`: the text that the lab's models are trained and measured on.

A mixture of English and exercises, as an ordinary corpus of documents, so that every stage and evaluation that takes a
corpus takes this one. Beside the documents lie the exercises as pairs of prompt and answer, for methods that train on
answers. How much of each kind there is follows from one table of shares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final, final

from harness.errors import SourceError, closest
from harness.interfaces import StageContext
from harness.sources.corpus import Pair, Split, write_documents, write_pairs
from harness.sources.lab.english import SOURCE, english
from harness.sources.lab.exercises import KINDS, Exercise, exercises

# Characters by default. A digit is a token and a word of English is about one, so shares of tokens are other ones: with
# a vocabulary of 2048, about 6 million tokens, a quarter of them English.
CHARACTERS: Final[Mapping[str, int]] = {
    "english": 2_500_000,
    "arithmetic": 1_400_000,
    "copy": 2_200_000,
    "lookup": 1_800_000,
    "qa": 2_800_000,
    "tools": 2_200_000,
}
HELDOUT_ONE_IN: Final = 25  # characters; the docstrings' held-out pages give no more
EXERCISES: Final = (4, 12)  # in a document: many documents, because every document's first exercise has no examples
SPLITS: Final[tuple[Split, ...]] = ("train", "heldout")


@dataclass(frozen=True)
class Document:
    """Exercises of one kind one after the other, or a page of English."""

    kind: str
    text: str
    exercises: tuple[Exercise, ...] = field(default=())


@final
@dataclass(frozen=True)
class LabText:
    """English and exercises as a corpus: `lab-text:all` or, for some kinds, `lab-text:arithmetic,copy,english`.

    Does:   writes documents of the kinds named (`english`, `arithmetic`, `copy`, `lookup`, `qa`, `tools`), mixed in an
            order drawn by `seed`: `characters` in all, by default about 15 million for all kinds, one in 25 held out. A
            document is a page of prose or 4 to 12 exercises of one kind. Exercises are also written as pairs of prompt
            and answer (`train.pairs.jsonl`, `heldout.pairs.jsonl`), in the order of the documents.
    Needs:  for `english`, the packages of `docstrings:default`; nothing for exercises.
    Why:    a family of models that is trained here needs text that every machine has, skills whose answers are known
            and questions that are known to be new.
    Known:  shares are those of a table and scale with `characters`; a skill is a form, not the world: `qa` is reading
            two made sentences, `tools` is one small dialect. Prompts of `arithmetic` and `tools` are few (thousands),
            so training text repeats them; of the 100 products of digits four are held out. The packages hold about
            5.8 million characters of prose; asking for more is an error.
    Source: our own generators, `harness.sources.lab.exercises`; Python's docstrings as in `docstrings`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = "quickstart"

    reference: str
    _: KW_ONLY
    characters: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(self._named - CHARACTERS.keys())
        if unknown:
            hint = closest(unknown[0], CHARACTERS)
            allowed = "`all`, or some of " + ", ".join(CHARACTERS)
            raise ValueError(f"{unknown[0]!r} is no kind of text; allowed: {allowed}" + (f"; {hint}" if hint else ""))
        if self.characters is not None and self.characters < 10_000:
            raise ValueError(f"characters is {self.characters}; allowed: 10000 or more, or none for the default")

    @property
    def format(self) -> str:
        return "text"

    @property
    def fingerprint(self) -> str:
        """That of the docstrings where English is in; exercises depend on nothing else."""
        return SOURCE.fingerprint if "english" in self.kinds else ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of text, in the order of the table of shares."""
        return tuple(kind for kind in CHARACTERS if kind in self._named)

    @property
    def _named(self) -> frozenset[str]:
        if self.reference == "all":
            return frozenset(CHARACTERS)
        return frozenset(name.strip() for name in self.reference.split(","))

    def fetch(self, out: Path, *, context: StageContext) -> None:
        prose = english(context) if "english" in self.kinds else {}
        drawn = {split: self._documents(split, prose.get(split, []), context) for split in SPLITS}
        write_documents(out, **{split: [one.text for one in documents] for split, documents in drawn.items()})
        if set(self.kinds) & set(KINDS):
            write_pairs(out, **{split: list(_pairs(documents)) for split, documents in drawn.items()})
        for split, documents in drawn.items():
            context.report.notes |= _counts(split, documents)

    def _documents(self, split: Split, prose: list[str], context: StageContext) -> list[Document]:
        """Gives the documents of a split, as many of each kind as its share, mixed."""
        mixed: list[Document] = []
        for kind in self.kinds:
            context.progress(None, f"{split}: {kind}")
            if kind == "english":
                source: Iterator[Document] = _pages(prose, self.seed)
            else:
                source = _sheets(kind, seed=self.seed, split=split)
            mixed += _enough(source, self._share(kind, split), kind)
        random.Random(self.seed).shuffle(mixed)
        return mixed

    def _share(self, kind: str, split: Split) -> int:
        default = sum(CHARACTERS[one] for one in self.kinds)
        share = CHARACTERS[kind] * (self.characters or default) // default
        heldout = share // HELDOUT_ONE_IN
        return heldout if split == "heldout" else share - heldout


def _pages(prose: list[str], seed: int) -> Iterator[Document]:
    shuffled = random.Random(seed).sample(prose, len(prose))
    return (Document("english", page) for page in shuffled)


def _sheets(kind: str, *, seed: int, split: Split) -> Iterator[Document]:
    """Yields documents of exercises without end."""
    drawn = exercises(kind, seed=seed, split=split)
    rng = random.Random(f"{kind}/{seed}/{split}")
    while True:
        sheet = tuple(islice(drawn, rng.randint(*EXERCISES)))
        yield Document(kind, "".join(one.text for one in sheet), sheet)


def _enough(source: Iterable[Document], characters: int, kind: str) -> list[Document]:
    taken: list[Document] = []
    count = 0
    for document in source:
        if count >= characters:
            return taken
        taken.append(document)
        count += len(document.text)
    if count >= characters:
        return taken
    raise SourceError(
        f"there are {count} characters of {kind} and {characters} are asked for",
        remedy="ask for fewer `characters`, or for more kinds of text so that each has a smaller share",
    )


def _pairs(documents: Iterable[Document]) -> Iterator[Pair]:
    for document in documents:
        for one in document.exercises:
            yield Pair(kind=one.kind, prompt=one.prompt, answer=one.answer)


def _counts(split: Split, documents: list[Document]) -> dict[str, int]:
    measured: Mapping[str, Callable[[Document], int]] = {
        "documents": lambda document: 1,
        "characters": lambda document: len(document.text),
        "exercises": lambda document: len(document.exercises),
    }
    return {f"{name}_{split}": sum(map(count, documents)) for name, count in measured.items()}
