"""What a model writes when it is given the beginnings of documents: samples of its manner, one a prompt.

Who taught a student can only be asked of texts on which teacher and student stood on the same footing: the same
beginnings, as many tokens, the same temperature. Beginnings are counted in words, not in tokens, so that models with
different tokenizers read the same text; and they are texts that no other split of the corpus has, so that a classifier
is never trained on a prompt it is tested on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from pydantic import ValidationError

from harness.errors import CorruptArtifact, SourceError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need, read_documents
from harness.spec import Need, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.runtimes._hf_text import HfText

FILE = "continuations.jsonl"


class Continuation(Value):
    """A prompt and the text a model wrote after it, without its end token."""

    prompt: str
    text: str


@final
@dataclass(frozen=True)
class CaptureContinuations:
    """Continues the beginnings of a corpus's training documents.

    Does:   takes the first `prompt_words` words of `samples` training documents, lets the model continue each by at
            most `max_tokens` tokens at `temperature` (0 takes the likeliest) from the full distribution, no top-k and
            no top-p, `batch` at a time, and writes one JSON line {"prompt", "text"} for each.
    Needs:  a Hugging Face folder; a corpus whose documents are longer than the prompts.
    Why:    texts of a known author, which the evaluation `footprint` learns to tell apart.
    Known:  words are what stands between white space, so languages written without it give no prompts. The text depends
            on `batch` by the rounding of the arithmetic. All models draw from the same random numbers: two that are
            equal write the same. Decoding on a CPU is slow: some hundred tokens a second for 135 million parameters.
    Source: outputs of candidate teachers as in S. Wadhwa et al., arXiv 2502.06659.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "files"
    emulated: ClassVar[bool] = False

    corpus: CorpusArgument = "docstrings:default"
    samples: int = 200
    prompt_words: int = 16
    max_tokens: int = 64
    temperature: float = 1.0
    batch: int = 16

    def __post_init__(self) -> None:
        corpus_need(self.corpus)
        numbers = ("samples", "prompt_words", "max_tokens", "batch")
        for name, value in zip(numbers, (self.samples, self.prompt_words, self.max_tokens, self.batch), strict=True):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: a number from 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: from 0, which takes the likeliest")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.runtimes._hf_text import HfText
        from harness.stages.hf_folder import load_model, load_tokenizer, reproducible, stored_dtype

        documents = read_documents(context.artifacts["corpus"], "train")
        prompts = cut_prompts(documents, words=self.prompt_words, count=self.samples)
        text = HfText(load_tokenizer(source), directory=source.path)
        with reproducible(context):
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            found = list(self._continuations(model, text, prompts, context))
        with (out / FILE).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(one.model_dump_json() + "\n" for one in found)
        context.report.notes |= {"continuations": len(found), "characters": sum(len(one.text) for one in found)}

    def _continuations(
        self, model: PreTrainedModel, text: HfText, prompts: Sequence[str], context: StageContext
    ) -> Iterator[Continuation]:
        """Yields what the model writes. Raises SpecError when a prompt leaves no room for it."""
        from harness.training.sampling import Sampling, require_room, sample

        encoded = [text.encode(prompt, bos=True) for prompt in prompts]
        require_room(model, max(map(len, encoded)) + self.max_tokens)
        how = Sampling(self.max_tokens, self.temperature, text.end_tokens)
        for start in range(0, len(prompts), self.batch):
            context.progress(start / len(prompts), f"{start} of {len(prompts)} prompts continued")
            asked = slice(start, start + self.batch)
            for prompt, tokens in zip(prompts[asked], sample(model, encoded[asked], how=how), strict=True):
                context.report.tokens += len(tokens)
                written = tokens[:-1] if tokens[-1] in text.end_tokens else tokens
                yield Continuation(prompt=prompt, text=text.decode(written))


def cut_prompts(documents: Sequence[str], *, words: int, count: int, without: Collection[str] = ()) -> list[str]:
    """Gives the first `words` words of `count` documents that go on after them, each beginning once.

    Documents are taken in the order of the hash of their text, so that neighbours in the corpus are not neighbours
    here; beginnings in `without` are left out. Raises SourceError when there are too few.
    """
    beginning = re.compile(rf"(?:\S+\s+){{{words - 1}}}\S+(?=\s+\S)")
    in_order = sorted(documents, key=lambda text: hashlib.sha256(text.encode()).digest())
    matches = (beginning.match(document.lstrip()) for document in in_order)
    found = [text for text in dict.fromkeys(match.group() for match in matches if match) if text not in without]
    if len(found) < count:
        raise SourceError(
            f"the corpus has {len(found)} usable beginnings of {words} words and {count} are asked for",
            remedy="ask for fewer samples or shorter prompts, or choose a larger corpus",
        )
    return found[:count]


def read_continuations(captured: Artifact) -> list[Continuation]:
    """Gives what the stage wrote, in its order. Raises CorruptArtifact for a file that it did not write."""
    file = captured.path / FILE
    try:
        # newline="\n": a text may hold other characters that Python takes for the end of a line.
        with file.open(encoding="utf-8", newline="\n") as lines:
            return [Continuation.model_validate_json(line) for line in lines]
    except (FileNotFoundError, UnicodeDecodeError, ValidationError) as error:
        raise CorruptArtifact(f"{file}: not the continuations of a model") from error
