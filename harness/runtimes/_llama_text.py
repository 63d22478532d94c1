"""Text to tokens and back by llama.cpp's tokenizer, and chats to text by the template inside the file.

The chat template is Jinja and comes from whoever made the file, so it runs in Jinja's immutable sandbox. It is set up
as transformers sets it up (block trimming, `tojson` that escapes nothing, `raise_exception`, `strftime_now`, loop
controls and `{% generation %}` blocks), so that both runtimes give a model the same prompt.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import llama_cpp.llama_cpp as lib
from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harness.errors import Unsupported
from harness.runtimes._llama_api import Weights

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


class Tokenizer:
    """The tokenizer of a loaded file. Special tokens are those the file declares, not llama.cpp's defaults."""

    def __init__(self, model: Weights) -> None:
        self._model, self._vocabulary = model, model.vocabulary
        self._adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocabulary))
        # SentencePiece puts a space before a text; what puts it in takes it out again.
        self._strips_first = (
            model.metadata("tokenizer.ggml.model") == "llama"
            and model.metadata("tokenizer.ggml.add_space_prefix") != "false"
        )
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Gives the tokens; special tokens written in the text become themselves, BOS comes if the model wants one."""
        data = text.encode()
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = lib.llama_tokenize(self._vocabulary, data, len(data), buffer, room, False, True)
        assert count >= 0, f"{-count} tokens from {len(data)} bytes"
        start = [self.declared("bos_token_id")] if bos and self._adds_bos else []
        return [*(token for token in start if token is not None), *buffer[:count]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Gives the text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(self._piece(token) for token in tokens)
        if self._strips_first and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            room = 256
            buffer = ctypes.create_string_buffer(room)
            length = lib.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, True)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = lib.llama_token_to_piece(self._vocabulary, token, buffer, -length, 0, True)
            self._pieces[token] = buffer.raw[:length]
        return self._pieces[token]

    def declared(self, key: str) -> int | None:
        """Gives a special token that the file's metadata declares, or None."""
        value = self._model.metadata(f"tokenizer.ggml.{key}")
        return None if value is None else int(value)

    def text(self, token: int) -> str:
        """Gives a token as the vocabulary spells it."""
        return str(lib.llama_vocab_get_text(self._vocabulary, token).decode("utf-8", errors="replace"))

    @cached_property
    def specials(self) -> dict[str, str]:
        """Special tokens by the names that chat templates use."""
        ids = {name: self.declared(key) for name, key in _SPECIAL.items()}
        return {name: self.text(token) for name, token in ids.items() if token is not None}

    @cached_property
    def chat_template(self) -> str | None:
        """The file's default chat template."""
        return self._model.metadata("tokenizer.chat_template")

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """EOS and EOT as declared, and whatever llama.cpp takes for an end of generation that the chat template uses.

        llama.cpp finds the latter by spelling and keeps more than a model ever ends with (SmolLM2's `<reponame>`).
        """
        declared = {self.declared(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")}
        template = self.chat_template or ""
        ends = (t for t in range(self._model.vocabulary_size) if lib.llama_vocab_is_eog(self._vocabulary, t))
        used = {token for token in ends if self.text(token) in template}
        return frozenset({token for token in declared if token is not None} | used)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the tokenizer's kind, its pre-tokenizer and every token with its attributes."""
        digest = hashlib.sha256()
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
            digest.update(f"{self._model.metadata(key)}\n".encode())
        for token in range(self._model.vocabulary_size):
            digest.update(lib.llama_vocab_get_text(self._vocabulary, token))
            digest.update(f"\n{lib.llama_vocab_get_attr(self._vocabulary, token)}\n".encode())
        return digest.hexdigest()


def render(
    template: str, messages: Sequence[Mapping[str, str]], *, specials: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Gives a chat as text. Raises Unsupported when the template refuses the messages or is broken."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda spelling: datetime.now().strftime(spelling)
    values = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return environment.from_string(template).render(**specials, **values)
    except TemplateError as refused:
        raise Unsupported(f"the chat template refuses these messages: {refused}") from refused


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _GenerationBlocks(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
