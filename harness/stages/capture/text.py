"""A corpus that a model writes itself, by sampling.

Where the training data of a model cannot be had, its own samples stand in for them: they are drawn from the very
distribution that a student is to learn. Samples start from nothing (the beginning token) or from chat prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import SourceError, SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELDOUT_ONE_IN = 20


@final
@dataclass(frozen=True)
class CaptureText:
    """Samples a text corpus from the model it is applied to.

    Does:   draws samples of at most `length` tokens at `temperature` from the full distribution (no top-k, no top-p),
            `batch` at a time, until `tokens` new tokens are there. Without `prompts` a sample starts from the beginning
            token; with them prompts are taken in turn, rendered by the chat template and kept in the text together with
            its special tokens. Every twentieth sample, and at least one, is held out; empty and repeated ones are
            dropped.
    Needs:  a Hugging Face folder; a chat template when there are prompts.
    Why:    text to distil or calibrate on when there is none: `corpus: {stages: [{use: capture.text, args: {...}}]}`
            asks for the reference's own samples.
    Known:  a sample that reaches `length` is cut. Samples from the beginning token of a chat model are odd but useful:
            QAD reports 60.9 with them against 62.0 with its training data (AIME25). Decoding one token at a time is
            slow on a CPU: expect some hundred tokens a second for 135 million parameters.
    Source: LLM-QAT, arXiv 2305.17888 (data-free generation); QAD, arXiv 2601.20088 (ablation by data source).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "text"
    emulated: ClassVar[bool] = False

    tokens: int
    prompts: Sequence[str] = ()
    length: int = 256
    temperature: float = 1.0
    batch: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not all(isinstance(prompt, str) and prompt for prompt in self.prompts):
            raise ValueError(f"prompts is {self.prompts!r}; allowed: a list of texts")
        if min(self.tokens, self.length, self.batch) < 1:
            found = f"tokens is {self.tokens}, length is {self.length}, batch is {self.batch}"
            raise ValueError(f"{found}; allowed: numbers from 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: more than 0, so that samples differ")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.sources.corpus import SEPARATOR, write_documents
        from harness.stages.hf_folder import load_model, load_tokenizer, stored_dtype, using_threads

        tokenizer = load_tokenizer(source)
        with using_threads(context.hardware), torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(context.seed)
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            samples = list(self._samples(model, tokenizer, context))
        # Special tokens stay where they carry the structure of a conversation; text from nothing has none to keep.
        texts = (str(tokenizer.decode(sample, skip_special_tokens=not self.prompts)) for sample in samples)
        documents = list(dict.fromkeys(text.replace(SEPARATOR, "\n") for text in texts if text.strip()))
        if len(documents) < 2:
            raise SourceError(
                f"the model wrote {len(documents)} different texts; a corpus needs one to train on and one held out",
                remedy="ask for more tokens, other prompts or a higher temperature",
            )
        write_documents(
            out,
            train=[text for index, text in enumerate(documents) if index % HELDOUT_ONE_IN],
            heldout=documents[::HELDOUT_ONE_IN],
        )
        context.report.notes |= {"documents": len(documents), "characters": sum(map(len, documents))}

    def _samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: StageContext
    ) -> Iterator[list[int]]:
        """Yields token lists, prompt included, until the model has written `tokens` tokens."""
        starts = self._starts(tokenizer)
        written = begun = 0
        while written < self.tokens:
            prompts = [starts[(begun + place) % len(starts)] for place in range(self.batch)]
            begun += self.batch
            for prompt, continuation in zip(prompts, self._continue(model, prompts), strict=True):
                written += max(len(continuation), 1)  # a sample that ends at once was a token too, and ends the loop
                yield prompt + continuation
            context.progress(min(written / self.tokens, 1.0), f"{written} of {self.tokens} tokens written")
        context.report.tokens += written

    def _starts(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Gives the token lists to continue. Raises Unsupported when the tokenizer cannot start or render a chat."""
        if not self.prompts:
            if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
                raise Unsupported("the tokenizer has no token to start from", remedy="give prompts")
            return [[tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]]
        if tokenizer.chat_template is None:
            raise Unsupported("the model has no chat template", remedy="leave out `prompts` to sample from nothing")
        conversations = [[{"role": "user", "content": prompt}] for prompt in self.prompts]
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
        return [tokenizer.encode(str(text), add_special_tokens=False) for text in texts]

    def _continue(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Yields what the model writes after each prompt, without the end token; left-padded batches."""
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        _require_room(model, width + self.length)
        tokens_BT = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends = _end_tokens(model)
        # A configuration of its own: the model's may carry penalties and cut-offs that bend the distribution.
        settings = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.length,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
        model.generation_config = settings
        generate: Any = model.generate
        written_BT = generate(tokens_BT.to(model.device), attention_mask=mask_BT.to(model.device))
        for row in written_BT[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            yield row[:end]


def _require_room(model: PreTrainedModel, tokens: int) -> None:
    """Raises SpecError when a sample would be longer than the model can attend to."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise SpecError("prompt and sample do not fit into the model", key="length", found=tokens, allowed=f"to {most}")


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Gives the tokens at which generation stops."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)
