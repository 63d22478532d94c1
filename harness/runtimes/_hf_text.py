"""Text to tokens and back with the tokenizer of a Hugging Face directory, for every runtime that opens one.

Two runtimes that read the same directory must see the same prompt and end at the same tokens, so this is in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from harness.errors import Unsupported


class HfText:
    """Implements the part of `harness.interfaces.Session` that needs no weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, directory: Path) -> None:
        self.tokenizer, self._directory = tokenizer, directory

    @property
    def prefix_token(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise Unsupported("the tokenizer has neither a BOS nor an EOS, so a text without context cannot be scored")

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        declared = [self.tokenizer.eos_token_id, *(config.to_dict().get("eos_token_id") for config in self._configs())]
        lists = [found if isinstance(found, list) else [found] for found in declared if found is not None]
        return frozenset(int(token) for found in lists for token in found)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*self._own_start, *tokens] if bos else tokens

    @cached_property
    def _own_start(self) -> list[int]:
        """The BOS, when the tokenizer puts one before a text by itself; SmolLM2's has a BOS and does not."""
        start = self.tokenizer.bos_token_id
        puts: list[int] = self.tokenizer("", verbose=False)["input_ids"]
        return [start] if start is not None and puts[:1] == [start] else []

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        if not self.tokenizer.chat_template:
            remedy = "use an instruction-tuned model, or plain prompts"
            raise Unsupported("the model has no chat template", remedy=remedy)
        turns = [dict(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise Unsupported(f"the model's chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def _configs(self) -> list[Any]:
        config = AutoConfig.from_pretrained(self._directory, trust_remote_code=False, local_files_only=True)
        found: list[Any] = [config, config.get_text_config()]
        if (self._directory / "generation_config.json").is_file():
            found.append(GenerationConfig.from_pretrained(self._directory, local_files_only=True))
        return found
