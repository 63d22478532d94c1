"""A session over a Hugging Face model written for plainness: one request at a time, one token at a time, no cache."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.record import Identity


@dataclass(frozen=True)
class SlowSession:
    """Answers from the definition: log-softmax of the logits, argmax for generation."""

    model: Any
    tokenizer: Any
    max_length: int

    @classmethod
    def open(cls, folder: Path, *, dtype: torch.dtype = torch.float32, max_length: int = 512) -> Self:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder), max_length)

    @property
    def identity(self) -> Identity:
        return Identity(
            weights_digest="",
            weights_disk_bytes=0,
            weights_memory_bytes=0,
            parameters=1,
            tensor_types={},
            kernel="plain",
            tokenizer_hash="tokenizer",
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def prefix_token(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(bos if bos is not None else self.tokenizer.eos_token_id)

    @property
    def end_tokens(self) -> frozenset[int]:
        return frozenset({int(self.tokenizer.eos_token_id)})

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=bos))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens))

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        rendered = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(rendered)

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        return [self._score(list(one.context), list(one.continuation)) for one in requests]

    def _score(self, context: list[int], continuation: list[int]) -> Scored:
        assert context
        assert continuation
        assert len(context) + len(continuation) <= self.max_length
        logits_TV = self.model(torch.tensor([context + continuation])).logits[0].float()
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)[len(context) - 1 : -1]
        picked = [float(row[token]) for row, token in zip(logprobs_TV, continuation, strict=True)]
        greedy = [int(row.argmax()) == token for row, token in zip(logprobs_TV, continuation, strict=True)]
        return Scored(logprobs=picked, greedy=greedy)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        for number, request in enumerate(requests):
            written: list[int] = []
            while True:
                token = int(self.model(torch.tensor([[*request.prompt, *written]])).logits[0, -1].argmax())
                ended = token in self.end_tokens
                written += [] if ended else [token]
                text = self.tokenizer.decode(written, skip_special_tokens=True)
                stopped = [text.index(stop) for stop in request.stop if stop in text]
                finish = (
                    "stop" if stopped else "eos" if ended else "length" if len(written) == request.max_tokens else None
                )
                if finish:
                    yield Token(number, token, finish, text[: min(stopped, default=len(text))])
                    break
                yield Token(number, token)
