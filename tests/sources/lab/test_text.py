"""The lab's text: documents of exercises and English in the shares of the table, and the exercises as pairs."""

import re
from collections import Counter

import pytest

from harness.errors import SourceError, SpecError
from harness.sources.corpus import read_documents, read_pairs
from harness.sources.docstrings import Docstrings
from harness.sources.lab import english, text
from harness.sources.lab.exercises import KINDS
from harness.sources.lab.text import CHARACTERS, LabText
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.sources.lab.solving import solve

SPLITS = ("train", "heldout")
PROSE = {
    split: [f"Page {n} of {split} is prose, and prose is all there is on it." for n in range(2000)] for split in SPLITS
}


def fetch(source: LabText, tmp_path):
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch")
    source.fetch(out, context=used)
    return artifact(out, "text"), used.report


@pytest.fixture
def made_prose(monkeypatch) -> None:
    monkeypatch.setattr(text, "english", lambda context: PROSE)


def test_the_lab_text_is_a_proper_plugin() -> None:
    check_plugin("sources", LabText)


def test_a_document_is_exercises_of_one_kind_and_each_is_a_pair(tmp_path) -> None:
    corpus, report = fetch(LabText("arithmetic,tools", characters=40_000), tmp_path)
    for split in SPLITS:
        documents, pairs = read_documents(corpus, split), read_pairs(corpus, split)
        assert "".join(documents) == "".join(f"{pair.prompt}{pair.answer}\n" for pair in pairs)
        assert report.notes[f"exercises_{split}"] == len(pairs)
        assert all(pair.answer == solve(pair.kind, pair.prompt) for pair in pairs)
        for document in documents:
            starts = document.count("user: ") or document.count("=")
            assert 4 <= starts <= 12
            assert ("user: " in document) != ("=" in document)


def test_what_is_held_out_is_never_trained_on(tmp_path) -> None:
    corpus, _ = fetch(LabText(",".join(KINDS), characters=200_000), tmp_path)
    train, heldout = ({(pair.kind, pair.prompt) for pair in read_pairs(corpus, split)} for split in SPLITS)
    assert not train & heldout
    assert {kind for kind, _ in heldout} == set(KINDS)


@pytest.mark.usefixtures("made_prose")
def test_every_kind_has_its_share_of_the_characters(tmp_path) -> None:
    asked = 300_000
    corpus, report = fetch(LabText("all", characters=asked), tmp_path)
    # A split goes on to the end of its last document of each kind, and none is longer than 12 exercises of 200.
    slack = len(CHARACTERS) * 12 * 200
    assert 0 <= report.notes["characters_train"] - asked * 24 / 25 <= slack
    assert 0 <= report.notes["characters_heldout"] - asked / 25 + len(CHARACTERS) <= slack
    counts = Counter()
    for pair in read_pairs(corpus, "train"):
        counts[pair.kind] += len(pair.prompt + pair.answer) + 1
    counts["english"] = sum(len(page) for page in read_documents(corpus, "train") if page.startswith("Page"))
    for kind, share in CHARACTERS.items():
        expected = share / sum(CHARACTERS.values()) * asked * 24 / 25
        assert 0 <= counts[kind] - expected + 1 <= 12 * 200, kind


@pytest.mark.usefixtures("made_prose")
def test_kinds_are_mixed(tmp_path) -> None:
    corpus, _ = fetch(LabText("english,qa", characters=60_000), tmp_path)
    is_english = "".join("e" if page.startswith("Page") else "q" for page in read_documents(corpus, "train"))
    assert len(re.findall("eq", is_english)) > 10


@pytest.mark.usefixtures("made_prose")
def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(tmp_path) -> None:
    runs = [LabText("copy,english", characters=30_000, seed=seed) for seed in (0, 0, 1)]
    folders = [fetch(source, tmp_path / str(number))[0].path for number, source in enumerate(runs)]
    for name in ("train.txt", "heldout.txt", "train.pairs.jsonl", "heldout.pairs.jsonl"):
        first, second, other = ((folder / name).read_bytes() for folder in folders)
        assert first == second != other


@pytest.mark.usefixtures("made_prose")
def test_english_alone_has_no_pairs(tmp_path) -> None:
    corpus, _ = fetch(LabText("english", characters=20_000), tmp_path)
    with pytest.raises(SpecError, match="no pairs"):
        read_pairs(corpus, "train")


@pytest.mark.usefixtures("made_prose")
def test_more_prose_than_there_is_is_an_error_and_never_repeated(tmp_path) -> None:
    with pytest.raises(SourceError, match="characters of english"):
        fetch(LabText("english", characters=1_000_000), tmp_path)


def test_only_english_depends_on_what_is_installed() -> None:
    assert LabText("qa,tools").fingerprint == ""
    assert LabText("all").fingerprint == LabText("english").fingerprint == text.SOURCE.fingerprint


def test_the_order_of_the_kinds_does_not_matter() -> None:
    assert LabText("tools, qa").kinds == LabText("qa,tools").kinds == ("qa", "tools")
    assert LabText("all").kinds == tuple(CHARACTERS) == ("english", *KINDS)


@pytest.mark.parametrize("reference", ["", "poems", "qa,,tools", "all,qa", "arithmetik"])
def test_a_reference_that_names_no_kind_is_refused(reference) -> None:
    with pytest.raises(ValueError, match="arithmetic"):
        LabText(reference)


def test_too_small_a_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="10000"):
        LabText("qa", characters=100)


@pytest.mark.slow
def test_the_installed_packages_hold_the_prose_that_is_asked_for(tmp_path) -> None:
    _, report = fetch(LabText("english"), tmp_path)
    assert report.notes["characters_train"] >= CHARACTERS["english"] * 24 // 25
    assert "numpy" in report.notes["packages"]


def test_real_pages_become_sentences_that_are_held_out_or_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(english, "SOURCE", Docstrings("networkx"))
    corpus, _ = fetch(LabText("english", characters=100_000), tmp_path)
    train, heldout = ({line for page in read_documents(corpus, split) for line in page.split("\n")} for split in SPLITS)
    assert not train & heldout
    assert all(line.isascii() and len(line) >= 30 for line in train | heldout)
