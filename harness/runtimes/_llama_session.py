"""A GGUF file open in llama.cpp: the `Session` that evaluations talk to.

Opening does what a server does before its first request and no more. What identifies the model (hashing the file,
walking its tensor list) waits until somebody asks, so that load time stays the model's own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import llama_cpp
import numpy as np

from harness.errors import ModelError, Unsupported
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.record import Identity
from harness.runtimes import _llama_generate, _llama_score
from harness.runtimes._gguf_header import tensors
from harness.runtimes._llama_api import Engine, Floats, Weights
from harness.runtimes._llama_text import Tokenizer, render
from harness.runtimes.stopping import TextWatcher


@dataclass
class LlamaSession:
    """Implements `harness.interfaces.Session`. One call at a time: all of them use the one cache."""

    file: Path
    model: Weights
    engine: Engine
    kernel: str
    caveats: tuple[str, ...]
    _calls: int = field(default=0, init=False)

    @cached_property
    def identity(self) -> Identity:
        with self.file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        counts: Counter[str] = Counter()
        for tensor in tensors(self.file):
            counts[tensor.type] += tensor.elements
        template = self._tokenizer.chat_template
        return Identity(
            weights_digest=digest,
            weights_disk_bytes=self.file.stat().st_size,
            weights_memory_bytes=self.model.size_bytes,
            parameters=self.model.parameters,
            tensor_types=dict(sorted(counts.items())),
            kernel=self.kernel,
            tokenizer_hash=self._tokenizer.hash,
            chat_template_hash=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
            runtime_version=f"llama-cpp-python {llama_cpp.__version__}",
            caveats=self.caveats,
        )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.model)

    @property
    def max_length(self) -> int:
        return min(self.engine.limits.cells, self.model.trained_length)

    @property
    def vocabulary_size(self) -> int:
        return self.model.vocabulary_size

    @property
    def prefix_token(self) -> int:
        for key in ("bos_token_id", "eos_token_id"):
            token = self._tokenizer.declared(key)
            if token is not None:
                return token
        raise Unsupported("the file declares neither a BOS nor an EOS token", remedy="convert it with its tokenizer")

    @property
    def end_tokens(self) -> frozenset[int]:
        return self._tokenizer.end_tokens

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return self._tokenizer.encode(text, bos=bos)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            raise Unsupported("the file has no chat template", remedy="leave chat evaluations out for this model")
        specials = self._tokenizer.specials
        return render(template, messages, specials=specials, add_generation_prompt=add_generation_prompt)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        for request in requests:
            assert request.context, "a request to score has a context of at least one token"
            # The last token is scored and never fed.
            self._require_room(len(request.context) + len(request.continuation) - 1)
        self._calls += 1
        return _llama_score.score(self.engine, requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        fitting = [self._fitted(request) for request in requests]
        self._calls += 1
        return self._generate(fitting, call=self._calls)

    def _generate(self, requests: Sequence[GenerateRequest], *, call: int) -> Iterator[Token]:
        for token in _llama_generate.generate(self.engine, requests, watch=self._watch):
            yield token
            assert call == self._calls, "another call used the cache while this generation was still running"

    def _watch(self, request: GenerateRequest) -> TextWatcher:
        return TextWatcher(self.decode, self.end_tokens, request)

    def logits(self, tokens: Sequence[int]) -> Floats:
        self._require_room(len(tokens))
        self._calls += 1
        self.engine.clear()
        rows_TV = np.empty((len(tokens), self.vocabulary_size), dtype=np.float32)
        step = self.engine.limits.batch_tokens
        for start in range(0, len(tokens), step):
            for position, token in enumerate(tokens[start : start + step], start=start):
                self.engine.add(token, position=position, sequences=(0,), wanted=True)
            rows_TV[start : start + step] = self.engine.run()
        if not np.isfinite(rows_TV).all():
            raise ModelError("the model's logits are not finite: its weights or its arithmetic are broken")
        return rows_TV

    def _fitted(self, request: GenerateRequest) -> GenerateRequest:
        """Gives the request with no more tokens than there is room for, unless exactly so many were asked for."""
        assert request.prompt, "a request to generate has a prompt of at least one token"
        self._require_room(len(request.prompt) + (request.max_tokens if request.ignore_eos else 1))
        return replace(request, max_tokens=min(request.max_tokens, self.max_length - len(request.prompt)))

    def _require_room(self, tokens: int) -> None:
        if tokens > self.max_length:
            remedy = (
                "give the runtime a larger `context`"
                if self.max_length < self.model.trained_length
                else "the model was trained for no more: ask for shorter prompts or answers"
            )
            raise Unsupported(
                f"{tokens} tokens do not fit into the {self.max_length} that there is room for", remedy=remedy
            )
