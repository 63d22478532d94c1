"""Corpora on disk and as blocks of tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import SourceError, SpecError
from harness.sources.corpus import (
    Pair,
    corpus_need,
    pack_blocks,
    read_documents,
    read_pairs,
    write_documents,
    write_pairs,
)
from harness.spec import Need, Use
from tests.building import artifact

END = 256
DOCUMENTS = ["alpha", "be", "gamma"]


def encode(text: str) -> list[int]:
    return list(text.encode())


def pack(documents, shape, seed=None):
    return pack_blocks(documents, encode=encode, shape=shape, separator=END, seed=seed)


text = st.text(st.characters(exclude_characters="\f", exclude_categories=("Cs",)), min_size=1).filter(str.strip)


@settings(max_examples=30)
@given(train=st.lists(text, min_size=1), heldout=st.lists(text, min_size=1))
def test_what_is_written_is_read_back_line_ends_included(tmp_path_factory, train, heldout):
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=train, heldout=heldout)
    assert read_documents(artifact(folder, "text"), "train") == train
    assert read_documents(artifact(folder, "text"), "heldout") == heldout


def test_an_artifact_of_another_format_is_no_corpus(tmp_path):
    with pytest.raises(SpecError, match="format text"):
        read_documents(artifact(tmp_path, "hf"), "train")


def test_an_empty_split_is_an_error_that_names_the_file(tmp_path):
    write_documents(tmp_path, train=DOCUMENTS, heldout=[])
    with pytest.raises(SourceError, match=r"heldout\.txt"):
        read_documents(artifact(tmp_path, "text"), "heldout")


def test_packing_joins_documents_with_the_separator_and_leaves_no_padding():
    joined = [*b"alpha", END, *b"be", END, *b"gamma", END]  # 15 tokens
    assert pack(DOCUMENTS, (3, 5)).tolist() == [joined[0:5], joined[5:10], joined[10:15]]


def test_too_little_text_is_an_error_and_never_repeated():
    with pytest.raises(SourceError, match="15 tokens and 16"):
        pack(DOCUMENTS, (4, 4))


def test_only_as_many_documents_are_encoded_as_are_needed():
    seen: list[str] = []
    pack_blocks(
        DOCUMENTS, encode=lambda text: seen.append(text) or encode(text), shape=(1, 4), separator=END, seed=None
    )
    assert seen == ["alpha"]


@given(seed=st.integers(0, 2**32))
def test_a_seed_permutes_whole_documents(seed):
    stream = pack(DOCUMENTS, (1, 15), seed)[0].tolist()
    words = bytes(token if token != END else ord("|") for token in stream).decode().strip("|").split("|")
    assert sorted(words) == sorted(DOCUMENTS)
    assert pack(DOCUMENTS, (1, 15), seed)[0].tolist() == stream


def test_a_corpus_is_a_source_or_made_by_stages_from_the_reference():
    assert corpus_need("docstrings:numpy") == Need(name="corpus", source="docstrings:numpy")
    made = corpus_need({"stages": [{"use": "capture.text", "args": {"tokens": 9}}]})
    assert made == Need(name="corpus", source="reference", stages=(Use(use="capture.text", args={"tokens": 9}),))


@pytest.mark.parametrize("wrong", ["docstrings", "", 3, {}, {"stages": []}, {"stages": [{"use": "x"}], "sauce": "y"}])
def test_any_other_corpus_is_refused(wrong):
    with pytest.raises(ValueError, match=r"corpus|sauce"):
        corpus_need(wrong)


PAIRS = [Pair(kind="qa", prompt="Where?\n", answer=" here\u2028"), Pair(kind="sum", prompt="1+1=", answer="2")]


def test_pairs_that_are_written_are_read_back_in_order(tmp_path):
    write_pairs(tmp_path, train=PAIRS, heldout=PAIRS[:1])
    assert read_pairs(artifact(tmp_path, "text"), "train") == PAIRS
    assert read_pairs(artifact(tmp_path, "text"), "heldout") == PAIRS[:1]


def test_a_corpus_without_pairs_says_which_ones_have_some(tmp_path):
    write_documents(tmp_path, train=DOCUMENTS, heldout=DOCUMENTS)
    with pytest.raises(SpecError, match="lab-text"):
        read_pairs(artifact(tmp_path, "text"), "train")
    write_pairs(tmp_path, train=[], heldout=[])
    with pytest.raises(SpecError, match="no pairs"):
        read_pairs(artifact(tmp_path, "text"), "train")


@pytest.mark.parametrize(
    "line", ["not json", '{"kind": "qa", "prompt": "?"}', '{"kind": "a", "prompt": "b", "answer": 3}']
)
def test_a_line_that_is_no_pair_is_named_by_its_number(tmp_path, line):
    (tmp_path / "train.pairs.jsonl").write_text(f"{PAIRS[0].model_dump_json()}\n{line}\n")
    with pytest.raises(SpecError, match=r"train\.pairs\.jsonl:2"):
        read_pairs(artifact(tmp_path, "text"), "train")
