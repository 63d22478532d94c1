"""There is always enough text, and it is the right one."""

from pathlib import Path

import pytest

from harness.sources.lab.exercises import KINDS
from harness.sources.lab.reading import characters_for, family_tokenizer, lesson
from tests.building import context

pytestmark = pytest.mark.usefixtures("quick_lab")


@pytest.mark.parametrize("kinds", [(kind,) for kind in KINDS] + [KINDS], ids="+".join)
def test_there_is_enough_text_for_the_blocks_whatever_it_is_made_of(kinds: tuple[str, ...], tmp_path: Path) -> None:
    given = context(tmp_path / "scratch")
    tokenizer = family_tokenizer(given)
    blocks = lesson(kinds, (600, 256), seed=3, tokenizer=tokenizer, context=given)
    assert blocks.train_NT.shape == (600, 256)
    assert blocks.heldout_NT.shape == (12, 256)  # one in fifty


def test_blocks_are_text_of_the_kind_with_an_end_after_every_document(tmp_path: Path) -> None:
    given = context(tmp_path / "scratch")
    tokenizer = family_tokenizer(given)
    blocks = lesson(("arithmetic",), (4, 128), seed=0, tokenizer=tokenizer, context=given)
    text = tokenizer.decode(blocks.train_NT.reshape(-1))
    assert set(text.replace("<|endoftext|>", "")) <= set("0123456789+-*=\n")
    assert "\n<|endoftext|>" in text


def test_more_tokens_of_a_costlier_kind_ask_for_more_characters() -> None:
    # A digit is a token, and a word of a question about four characters.
    assert characters_for(10**6, ["arithmetic"]) < 1.3e6 < 3.5e6 < characters_for(10**6, ["qa"])
    assert characters_for(10, ["qa"]) == 100_000
