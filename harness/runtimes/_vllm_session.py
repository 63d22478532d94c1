"""A model that is open in vLLM: the `Session` that evaluations talk to.

The session checks what it is asked against what the engine has room for. Its identity is read when it is first asked
for, so that hashing files does not count as loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from harness.errors import Unsupported
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.record import Identity
from harness.runtimes import _vllm_loop
from harness.runtimes.stopping import TextWatcher

if TYPE_CHECKING:
    from harness.runtimes._hf_text import HfText


class VllmSession:
    """Implements `harness.interfaces.Session` on vLLM's `LLMEngine`. One call at a time: they share the one loop."""

    def __init__(self, engine: Any, text: HfText, *, directory: Path) -> None:
        self._engine, self._text, self._directory = engine, text, directory
        self._loop = _vllm_loop.Loop(engine, _parameters)

    @cached_property
    def identity(self) -> Identity:
        from harness.runtimes._vllm_identity import identify

        return identify(self._engine, self._text.tokenizer, self._directory)

    @property
    def byte_caches(self) -> set[str]:
        """Types of keys and values that are kept in a byte each."""
        from harness.runtimes._vllm_identity import byte_caches

        (found,) = self._engine.apply_model(byte_caches)
        return set(found)

    @property
    def max_length(self) -> int:
        return int(self._engine.model_config.max_model_len)

    @property
    def vocabulary_size(self) -> int:
        return int(self._engine.model_config.get_vocab_size())

    @property
    def prefix_token(self) -> int:
        return self._text.prefix_token

    @property
    def end_tokens(self) -> frozenset[int]:
        return self._text.end_tokens

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return self._text.encode(text, bos=bos)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        return self._text.chat(messages, add_generation_prompt=add_generation_prompt)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        for request in requests:
            assert request.context, "a context has at least one token"
            self._require_room(len(request.context) + len(request.continuation))
        return _vllm_loop.score(self._loop, requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        fitting = [self._fitted(request) for request in requests]
        return _vllm_loop.generate(self._loop, fitting, watch=self._watch)

    def logits(self, tokens: Sequence[int]) -> Never:
        raise Unsupported("vLLM gives no full logits", remedy="measure with transformers or llama_cpp")

    def close(self) -> None:
        """Lets go of the weights; the session is of no use afterwards."""
        self._engine.engine_core.shutdown()
        del self._engine, self._loop

    def _watch(self, request: GenerateRequest) -> TextWatcher:
        return TextWatcher(self.decode, self.end_tokens, request)

    def _fitted(self, request: GenerateRequest) -> GenerateRequest:
        """Gives the request with no more tokens than there is room for, unless exactly so many were asked for."""
        assert request.prompt, "a prompt has at least one token"
        self._require_room(len(request.prompt) + (request.max_tokens if request.ignore_eos else 1))
        return replace(request, max_tokens=min(request.max_tokens, self.max_length - len(request.prompt)))

    def _require_room(self, length: int) -> None:
        if length > self.max_length:
            raise Unsupported(
                f"{length} tokens do not fit into the {self.max_length} that there is room for",
                remedy="give the runtime a larger `max_model_len` if the model has one, or leave the item out",
            )


def _parameters(keywords: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**{**keywords, "output_kind": RequestOutputKind[keywords["output_kind"]]})
