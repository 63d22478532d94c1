"""Text to tokens and back, from a directory alone."""

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from harness.errors import Unsupported
from harness.runtimes._hf_load import load_tokenizer
from harness.runtimes._hf_text import HfText
from tests.tiny import BOS, EOS, TEXT, TURN, tiny_llama


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def text(directory: Path) -> HfText:
    return HfText(load_tokenizer(directory), directory=directory)


def test_a_text_comes_back_as_it_was_and_special_tokens_inside_it_are_one_token(text: HfText) -> None:
    marked = f"{TURN}user\n{TEXT}{EOS}"
    assert text.decode(text.encode(marked)) == marked
    assert len(text.encode(TURN)) == 1


def test_the_start_token_is_added_when_asked_for_and_the_tokenizer_has_the_habit(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    without = HfText(tokenizer, directory=directory)
    assert without.encode("a", bos=True) == without.encode("a")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    having = HfText(tokenizer, directory=directory)
    assert having.decode([having.prefix_token]) == BOS
    assert having.encode("a", bos=True) == [having.prefix_token, *having.encode("a")]
    assert having.encode("a") == without.encode("a")


def test_a_text_ends_at_every_token_that_any_of_the_files_declares(directory: Path, tmp_path: Path) -> None:
    for file in directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    tokenizer = load_tokenizer(tmp_path)
    assert HfText(tokenizer, directory=tmp_path).end_tokens == {tokenizer.eos_token_id, 7, 9}


def test_a_chat_follows_the_models_template(text: HfText) -> None:
    said = text.chat([{"role": "user", "content": "Hi"}])
    # The template of tests.tiny, written out.
    assert said == f"{BOS}{TURN}user\nHi{EOS}\n{TURN}assistant\n"


def test_a_model_without_a_template_cannot_chat(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = None
    with pytest.raises(Unsupported, match="no chat template"):
        HfText(tokenizer, directory=directory).chat([{"role": "user", "content": "Hi"}])
