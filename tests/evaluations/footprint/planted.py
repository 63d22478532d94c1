"""Teachers and students whose manner is known because it was planted: each writes words of a vocabulary of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.evaluations.footprint.footprint import PROMPTS, Footprint
from harness.interfaces import Artifact, EvaluationContext, GenerateRequest, Token
from harness.record import ArtifactFacts, Observation
from harness.sources.corpus import write_documents
from harness.spec import Hardware, Use
from harness.stages.capture.continuations import FILE, Continuation, cut_prompts
from tests.building import artifact

WORDS: Mapping[str, Sequence[str]] = {
    "ada": ["engine", "number", "loom", "pattern", "wheel"],
    "bob": ["harbour", "sail", "anchor", "tide", "rope"],
    "cyd": ["meadow", "barley", "plough", "hedge", "lamb"],
}
TEACHERS = {"ada": {"source": "hub:x/ada"}, "bob": {"source": "hub:x/bob"}}
SAMPLES, PROMPT_WORDS = 20, 3
SMALL = {"prompts": "path:/corpus", "samples": SAMPLES, "prompt_words": PROMPT_WORDS, "max_tokens": 16}


def written(author: str, about: str, *, words: int = 12) -> str:
    """What an author writes after a prompt: words of its vocabulary, drawn anew for each prompt."""
    rng = random.Random(f"{author} {about}")
    return " ".join(rng.choice(WORDS[author]) for _ in range(words))


def document(split: str, number: int) -> str:
    return f"{split} page {number} begins here and goes on"


def corpus(folder: Path, *, heldout: int = SAMPLES, more: Sequence[str] = ()) -> Artifact:
    folder.mkdir()
    train = [document("train", number) for number in range(SAMPLES)]
    write_documents(folder, train=train, heldout=[*(document("heldout", n) for n in range(heldout)), *more])
    return artifact(folder, "text")


def captured(folder: Path, write: Callable[[str], str]) -> Artifact:
    """What the stage would have stored of a teacher."""
    folder.mkdir()
    documents = [document("train", number) for number in range(SAMPLES)]
    prompts = cut_prompts(documents, words=PROMPT_WORDS, count=SAMPLES)
    lines = [Continuation(prompt=prompt, text=write(prompt)).model_dump_json() + "\n" for prompt in prompts]
    (folder / FILE).write_text("".join(lines), encoding="utf-8")
    return artifact(folder, "files")


@dataclass(frozen=True)
class Writer:
    """A session that writes what `write` gives for the number of the request and its prompt; a character is a token."""

    write: Callable[[int, str], str]
    max_length: int = 256
    asked: list[GenerateRequest] = field(default_factory=list)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [*([0] if bos else []), *map(ord, text)]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        self.asked.extend(requests)
        # The last asked is the first to end: rows must not depend on who is ready when.
        for index, request in reversed(list(enumerate(requests))):
            yield Token(index, 1)
            yield Token(index, 0, "eos", self.write(index, "".join(map(chr, request.prompt[1:]))))


@dataclass(frozen=True)
class World:
    """A corpus, what teachers wrote, and a place to observe students."""

    texts: Artifact
    teachers: Mapping[str, Artifact]
    scratch: Path

    @classmethod
    def made(cls, folder: Path, *names: str, **about_corpus: object) -> World:
        teachers = {name: captured(folder / name, lambda prompt, name=name: written(name, prompt)) for name in names}
        return cls(corpus(folder / "corpus", **about_corpus), teachers, folder)

    def observe(self, evaluation: Footprint, student: Writer, *lineage: Use, seed: int = 0) -> list[Observation]:
        facts = ArtifactFacts(lineage=lineage, format="hf", digest="", size_bytes=0)
        context = EvaluationContext(
            artifacts={PROMPTS: self.texts, **{f"footprint of {name}": one for name, one in self.teachers.items()}},
            artifact=Artifact(self.scratch, facts),
            hardware=Hardware(),
            seed=seed,
            load_s=0.0,
            scratch=self.scratch,
            progress=lambda fraction, message: None,
        )
        return list(evaluation.observe(student, context=context))  # type: ignore[arg-type]
