"""A corpus that a model writes itself, by sampling.

Where the training data of a model cannot be had, its own samples stand in for them: they are drawn from the very
distribution that a student is to learn. Samples start from nothing (the beginning token), from chat prompts, or from
the beginnings of a corpus's documents; what is written after those is a teacher's answer for a student to learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import SourceError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import SEPARATOR, CorpusArgument, Pair, corpus_need, read_documents
from harness.spec import Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELDOUT_ONE_IN = 20
ENDED, CUT = "ended", "cut"
"""Kinds of pairs: the model came to an end of its own accord, or was stopped at `length`."""
# No beginning of n tokens is looked for in more than 16 n characters.
CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class _Sample:
    """What a model was given, what it wrote without its end token, and whether it came to that."""

    prompt: list[int]
    written: list[int]
    is_ended: bool


@final
@dataclass(frozen=True)
class CaptureText:
    """Samples a text corpus from the model it is applied to.

    Does:   draws samples of at most `length` tokens at `temperature` from the full distribution (no top-k, no top-p),
            `batch` at a time, until `tokens` new tokens are there. Without `prompts` a sample starts from the beginning
            token; with them prompts are taken in turn, rendered by the chat template and kept in the text together with
            its special tokens. With `corpus` the first `prompt_tokens` tokens of its training documents, shuffled by
            the seed, are continued in turn, and prompts and continuations are written as pairs too, of kind `ended` or
            `cut`. Every twentieth sample, and at least one, is held out; empty and repeated ones are dropped.
    Needs:  a Hugging Face folder; a chat template when there are prompts; the corpus, if one is named.
    Why:    text to distil or calibrate on when there is none: `corpus: {stages: [{use: capture.text, args: {...}}]}`
            asks for the reference's own samples. Sequence-level distillation learns from what a teacher wrote.
    Known:  a sample that reaches `length` is cut. Samples from the beginning token of a chat model are odd but useful:
            QAD reports 60.9 with them against 62.0 with its training data (AIME25). Decoding one token at a time is
            slow on a CPU: expect some hundred tokens a second for 135 million parameters. Temperature 0 takes the
            likeliest token, and needs a corpus, since equal prompts would give equal samples.
    Source: LLM-QAT, arXiv 2305.17888 (data-free generation); QAD, arXiv 2601.20088 (ablation by data source); Kim and
            Rush, arXiv 1606.07947 (a teacher's text as training data).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "text"
    emulated: ClassVar[bool] = False

    tokens: int
    prompts: Sequence[str] = ()
    length: int = 256
    temperature: float = 1.0
    batch: int = 16
    corpus: CorpusArgument | None = None
    prompt_tokens: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not all(isinstance(prompt, str) and prompt for prompt in self.prompts):
            raise ValueError(f"prompts is {self.prompts!r}; allowed: a list of texts")
        if min(self.tokens, self.length, self.batch, self.prompt_tokens) < 1:
            raise ValueError(
                f"tokens is {self.tokens}, length is {self.length}, batch is {self.batch}, prompt_tokens is "
                f"{self.prompt_tokens}; allowed: numbers from 1"
            )
        if self.corpus is not None:
            corpus_need(self.corpus)
            if self.prompts:
                raise ValueError("prompts and corpus are both given; allowed: one of them")
        if not (self.temperature > 0 or (self.temperature == 0 and self.corpus is not None)):
            found = f"temperature is {self.temperature}"
            raise ValueError(f"{found}; allowed: more than 0, so that samples differ, or 0 with a corpus")

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.corpus is None else (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.sources.corpus import write_documents, write_pairs
        from harness.stages.hf_folder import load_model, load_tokenizer, reproducible, stored_dtype

        tokenizer = load_tokenizer(source)
        prompts = self._prompts(tokenizer, context)
        with reproducible(context), torch.inference_mode():
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            samples = list(self._samples(model, prompts, context))
        texts = self._texts(samples, tokenizer)
        if len(texts) < 2:
            raise SourceError(
                f"the model wrote {len(texts)} different texts; a corpus needs one to train on and one held out",
                remedy="ask for more tokens, other prompts or a higher temperature",
            )
        train = [text for index, text in enumerate(texts) if index % HELDOUT_ONE_IN]
        heldout = list(texts)[::HELDOUT_ONE_IN]
        write_documents(out, train=train, heldout=heldout)
        if self.corpus is not None:
            write_pairs(out, train=[texts[text] for text in train], heldout=[texts[text] for text in heldout])
        context.report.notes |= {"documents": len(texts), "characters": sum(map(len, texts))}

    def _texts(self, samples: Iterable[_Sample], tokenizer: PreTrainedTokenizerBase) -> dict[str, Pair]:
        """Gives every different text that is not empty, with what of it was given and what was written."""
        # Special tokens stay where they carry the structure of a conversation; other text has none to keep.
        skips = not self.prompts
        found: dict[str, Pair] = {}
        for one in samples:
            text = str(tokenizer.decode(one.prompt + one.written, skip_special_tokens=skips)).replace(SEPARATOR, "\n")
            # A prompt that ends inside a character decodes to another text than with what completes the character.
            prompt = _shared_beginning(text, str(tokenizer.decode(one.prompt, skip_special_tokens=skips)))
            if text.strip() and text not in found:
                kind = ENDED if one.is_ended else CUT
                found[text] = Pair(kind=kind, prompt=prompt, answer=text[len(prompt) :])
        return found

    def _samples(
        self, model: PreTrainedModel, prompts: Iterator[list[int]], context: StageContext
    ) -> Iterator[_Sample]:
        """Yields samples until the model has written `tokens` tokens."""
        from harness.training.sampling import Sampling, end_tokens, sample

        ends = end_tokens(model)
        how = Sampling(self.length, self.temperature, ends)
        written = 0
        while written < self.tokens:
            asked = list(islice(prompts, self.batch))
            for prompt, tokens in zip(asked, sample(model, asked, how=how), strict=True):
                is_ended = tokens[-1] in ends
                kept = tokens[:-1] if is_ended else tokens
                written += max(len(kept), 1)  # a sample that ends at once was a token too, and ends the loop
                yield _Sample(prompt, kept, is_ended)
            context.progress(min(written / self.tokens, 1.0), f"{written} of {self.tokens} tokens written")
        context.report.tokens += written

    def _prompts(self, tokenizer: PreTrainedTokenizerBase, context: StageContext) -> Iterator[list[int]]:
        """Gives the token lists to continue, in turn and without end.

        Raises Unsupported when the tokenizer cannot start or render a chat, SourceError when no document is longer than
        a prompt.
        """
        if self.corpus is not None:
            return self._beginnings(tokenizer, context)
        if not self.prompts:
            if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
                raise Unsupported("the tokenizer has no token to start from", remedy="give prompts")
            return cycle([[tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]])
        if tokenizer.chat_template is None:
            raise Unsupported("the model has no chat template", remedy="leave out `prompts` to sample from nothing")
        conversations = [[{"role": "user", "content": prompt}] for prompt in self.prompts]
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
        return cycle([tokenizer.encode(str(text), add_special_tokens=False) for text in texts])

    def _beginnings(self, tokenizer: PreTrainedTokenizerBase, context: StageContext) -> Iterator[list[int]]:
        """Gives the first tokens of every training document that goes on after them; encodes only what is used."""
        from harness.stages.hf_folder import encoder

        documents = read_documents(context.artifacts["corpus"], "train")
        random.Random(context.seed).shuffle(documents)
        encode = encoder(tokenizer)
        encoded = (encode(document[: CHARACTERS_PER_TOKEN * self.prompt_tokens]) for document in documents)
        long_enough = (tokens[: self.prompt_tokens] for tokens in encoded if len(tokens) > self.prompt_tokens)
        first = next(long_enough, None)
        if first is None:
            raise SourceError(
                f"no document of the corpus is longer than {self.prompt_tokens} tokens",
                remedy="ask for fewer prompt_tokens, or choose a corpus of longer documents",
            )
        return cycle(chain([first], long_enough))


def _shared_beginning(left: str, right: str) -> str:
    pairs = enumerate(zip(left, right, strict=False))
    return left[: next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))]
