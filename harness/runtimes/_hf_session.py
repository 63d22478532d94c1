"""A Hugging Face model that is loaded: tokens to scores, texts and logits.

The session checks what it is asked against what the model can take and hands the work to `_hf_text`, `_hf_score` and
`_hf_generate`. Its identity is read when it is first asked for, so that hashing files does not count as loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from harness.errors import ModelError, Unsupported
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.record import Identity
from harness.runtimes import _hf_kv
from harness.runtimes._hf_forward import Forward
from harness.runtimes._hf_generate import generate
from harness.runtimes._hf_identity import identify
from harness.runtimes._hf_kv import QuantizedKv
from harness.runtimes._hf_score import score
from harness.runtimes._hf_text import HfText
from harness.runtimes.batching import Budget
from harness.runtimes.stopping import TextWatcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_CACHED_PER_TOKEN = 4
"""Tokens the cache may hold for each token of a pass: keys and values are smaller than activations."""
_LOGITS = 1 << 27
"""Logits of one pass, in elements: half a gigabyte in float32."""


class HfSession:
    """Implements `harness.interfaces.Session` on a transformers model, with quantized keys and values if `kv` says so.

    Raises Unsupported when this model's cannot be.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: HfText,
        *,
        directory: Path,
        max_batch_tokens: int,
        kv: QuantizedKv | None = None,
    ) -> None:
        self._model, self._text, self._directory, self._kv = model, text, directory, kv
        if kv is not None:
            _hf_kv.prepare(kv, model)
        self._forward = Forward(model, new_cache=None if kv is None else partial(kv.empty, model.config))
        self._budget = Budget(
            tokens=max_batch_tokens,
            cached=_CACHED_PER_TOKEN * max_batch_tokens,
            scored=max(1, _LOGITS // self.vocabulary_size),
            columns=self._forward.columns,
        )

    @cached_property
    def identity(self) -> Identity:
        found = identify(self._model, self._text.tokenizer, self._directory)
        if self._kv is None:
            return found
        kernel = f"{found.kernel} {self._kv.describe(self._model.config)}"
        return found.model_copy(update={"kernel": kernel, "caveats": (*found.caveats, self._kv.caveat)})

    @cached_property
    def max_length(self) -> int:
        declared = self._model.config.get_text_config().to_dict().get("max_position_embeddings")
        return int(declared or self._text.tokenizer.model_max_length)

    @property
    def vocabulary_size(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

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
            # The last token is scored and never read.
            self._require_room(len(request.context) + len(request.continuation) - 1)
        if self._kv is not None:
            return _hf_kv.score(self._forward, requests, residual=self._kv.residual)
        return score(self._forward, requests, budget=self._budget)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        fitting = [self._fitted(request) for request in requests]

        def watch(request: GenerateRequest) -> TextWatcher:
            return TextWatcher(self.decode, self.end_tokens, request)

        return generate(self._forward, fitting, watch=watch, budget=self._budget)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._require_room(len(tokens))
        if self._kv is not None:
            logits_TV = _hf_kv.logits(self._forward, tokens, residual=self._kv.residual)
        else:
            logits_TV, _ = self._forward.extend([tokens], picks=[(0, step) for step in range(len(tokens))])
        if not bool(logits_TV.isfinite().all()):
            raise ModelError("the model's logits are not finite")
        return logits_TV.float().cpu().numpy()

    def close(self) -> None:
        """Lets go of the weights; the session is of no use afterwards."""
        del self._model, self._forward

    def _fitted(self, request: GenerateRequest) -> GenerateRequest:
        """Gives the request with no more tokens than the model has room for, unless exactly so many were asked for."""
        assert request.prompt, "a prompt has at least one token"
        self._require_room(len(request.prompt) + (request.max_tokens if request.ignore_eos else 1))
        return replace(request, max_tokens=min(request.max_tokens, self.max_length - len(request.prompt)))

    def _require_room(self, length: int) -> None:
        if length > self.max_length:
            raise Unsupported(
                f"{length} tokens do not fit into the model's {self.max_length}",
                remedy="shorten the prompt, ask for fewer tokens or leave the item out",
            )
