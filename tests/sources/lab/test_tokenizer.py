"""The family's tokenizer loses nothing, cuts numbers into digits, and is the same every time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.sources.lab.tokenizer import END, train_tokenizer
from tests.sources.lab.plain_english import plain_english

SAMPLE = plain_english(100_000)["train"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SAMPLE, vocabulary=600)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_as_it_was(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token_of_its_own(tokenizer) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("12+305=317 and 2024")]
    assert [piece.strip() for piece in pieces if any(map(str.isdigit, piece))] == list("123053172024")


def test_encoding_adds_no_token_and_reads_the_end_token_as_one(tokenizer) -> None:
    end = tokenizer.eos_token_id
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (end, end)
    assert end not in tokenizer.encode("a")
    assert tokenizer.encode(f"a{END}") == [*tokenizer.encode("a"), end]


def test_the_same_sample_gives_the_same_tokenizer_of_the_size_asked_for(tokenizer) -> None:
    again = train_tokenizer(SAMPLE, vocabulary=600)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) == 600
