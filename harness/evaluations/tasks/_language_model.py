"""Our session in the shape of a language model of lm-eval.

lm-eval asks three things of a model: how likely a continuation is after a context, how likely a whole text is, and
what it would write. The first two become `session.score`, the last `session.generate`. Tokenization follows lm-eval's
Hugging Face backend: context and continuation are encoded together and split at the context's length, special tokens
inside the text are parsed, and the model's own BOS is added once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.errors import ModelError, Unsupported
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Session

DEFAULT_MAX_TOKENS = 256  # lm-eval's own, for tasks that name no limit
UNDERSTOOD = frozenset({"do_sample", "temperature", "until", "max_gen_toks"})


@dataclass(frozen=True)
class Written:
    """A generated text; it was cut when it was still going on at the token limit."""

    text: str
    was_cut: bool


class SessionLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Answers lm-eval's requests through a session. Sampling tasks draw with `seed`."""

    def __init__(self, session: Session, *, seed: int) -> None:
        super().__init__()
        self._session, self._seed = session, seed

    @property
    def eot_token_id(self) -> int:
        return min(self._session.end_tokens, default=self._session.prefix_token)

    @property
    def prefix_token_id(self) -> int:
        return self._session.prefix_token

    @property
    def max_length(self) -> int:
        """Tokens that lm-eval may feed in: the last one of a continuation is scored, never fed."""
        return self._session.max_length - 1

    @property
    def tokenizer_name(self) -> str:
        return self._session.identity.tokenizer_hash

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokens = self._session.encode(string, bos=add_special_tokens is not False)
        doubled = add_special_tokens is None and tokens[:2] == [self.prefix_token_id] * 2
        return tokens[1:] if doubled else tokens

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if add_generation_prompt:
            return self._session.chat(chat_history)
        # The last message is the beginning of the answer: it must stay open, so it is added to the opened turn.
        return self._session.chat(chat_history[:-1]) + chat_history[-1]["content"]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        asked = [self._fitting(context, continuation) for _, context, continuation in requests]
        return [(_total(scored), all(scored.greedy)) for scored in self._session.score(asked)]

    def _fitting(self, context: list[int], continuation: list[int]) -> ScoreRequest:
        room = self._session.max_length - len(continuation)
        if room < 1:
            raise Unsupported(
                f"an answer of {len(continuation)} tokens does not fit a context of {self._session.max_length}",
                remedy="open the model with a longer context",
            )
        return ScoreRequest(context=context[-room:], continuation=continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        windows = [
            (number, window) for number, request in enumerate(requests) for window in self._windows(*request.args)
        ]
        scores = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (number, _), (logprob, _greedy) in zip(windows, scores, strict=True):
            totals[number] += logprob
        return totals

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        rolling = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in rolling]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        return [written.text for written in self.write(requests)]

    def write(self, requests: Sequence[Instance]) -> list[Written]:
        """Answers requests by generation, in the order given."""
        asked = [self._generation(*request.args) for request in requests]
        ended: dict[int, Written] = {}
        for token in self._session.generate(asked):
            if token.text is not None:
                stop = list(asked[token.request].stop)
                text = postprocess_generated_text(token.text, stop=stop, think_end_token=None)
                ended[token.request] = Written(text, token.finish == "length")
        return [ended[number] for number in range(len(asked))]

    def _generation(self, prompt: str, asked: dict[str, Any]) -> GenerateRequest:
        options: dict[str, Any] = dict(normalize_gen_kwargs(asked, DEFAULT_MAX_TOKENS))
        strange = sorted(set(options) - UNDERSTOOD) if options["do_sample"] else []
        if strange:
            raise Unsupported(
                f"the task samples with {', '.join(strange)}", remedy="choose a task that decodes greedily"
            )
        limit = options["max_gen_toks"]
        room = self.max_length - limit
        if room < 1:
            raise Unsupported(
                f"the task writes up to {limit} tokens, the context holds {self._session.max_length}",
                remedy="open the model with a longer context",
            )
        return GenerateRequest(
            prompt=self.tok_encode(prompt)[-room:],
            max_tokens=limit,
            stop=tuple(text for text in handle_stop_sequences(options["until"], eos=None) if text),
            temperature=float(options.get("temperature", 0.0)) if options["do_sample"] else 0.0,
            seed=self._seed,
        )


def _total(scored: Scored) -> float:
    total = math.fsum(scored.logprobs)
    if not math.isfinite(total):
        raise ModelError(f"the model gave a log-probability of {total}")
    return total
