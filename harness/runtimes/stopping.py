r"""When a generated text ends, and what of it is the answer: one rule for every runtime that has no rule of its own.

Three things end a request: an end token, a stop string, or the number of tokens asked for. Stop strings do not
respect token boundaries (`\n\n` may come as one token, as two, or as the tail of another), so they are looked for
in the decoded text. Decoding everything after every token would be quadratic; a stop string that the newest token
completed must lie in the last few tokens, so only those are decoded until one of them shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from harness.interfaces import Finish, GenerateRequest

_SLACK = 8
"""Tokens decoded beyond the stop string's own bytes: a window may begin inside a character."""


class TextWatcher:
    """Is fed one request's tokens as they come, says when it ends, and keeps its text.

    With `ignore_eos` neither end tokens nor stop strings end the request: exactly `max_tokens` tokens come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], end_tokens: Set[int], request: GenerateRequest) -> None:
        assert request.max_tokens >= 1, "a request asks for at least one token"
        self._decode = decode
        self._end_tokens: Set[int] = frozenset() if request.ignore_eos else end_tokens
        self._stop = () if request.ignore_eos else tuple(stop for stop in request.stop if stop)
        self._window = max((len(stop.encode()) for stop in self._stop), default=0) + _SLACK
        self._max_tokens = request.max_tokens
        self._tokens: list[int] = []
        self.finish: Finish | None = None

    def feed(self, token: int) -> Finish | None:
        """Takes the next token and gives why the request ended, or None while it goes on."""
        assert self.finish is None, "a finished request gets no more tokens"
        self._tokens.append(token)
        if token in self._end_tokens:
            self.finish = "eos"
        elif self._completes_a_stop_string():
            self.finish = "stop"
        elif len(self._tokens) >= self._max_tokens:
            self.finish = "length"
        return self.finish

    @property
    def text(self) -> str:
        """The text so far, cut before the earliest stop string and without the end token."""
        text = self._decode(self._tokens[:-1] if self.finish == "eos" else self._tokens)
        return text[: min((text.index(stop) for stop in self._stop if stop in text), default=len(text))]

    def _completes_a_stop_string(self) -> bool:
        if not self._stop:
            return False
        tail = self._decode(self._tokens[-self._window :])
        if not any(stop in tail for stop in self._stop):
            return False
        # A window that begins inside a character or a word may show what the whole text does not.
        text = self._decode(self._tokens)
        return any(stop in text for stop in self._stop)
