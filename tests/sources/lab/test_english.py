"""Prose out of reference pages: sentences stay, everything else goes, nothing is said twice."""

from harness.sources.lab import english
from harness.sources.lab.english import prose
from tests.building import context

PAGE = """Return the element-wise
maximum of two arrays.

Parameters
----------
x : array
    The first array of numbers to compare.
y : array
    Second.

>>> Compare(1, 2) gives the larger one of both.
    The naïve reading of this is not kept here.
Compares each number with the number at its place.
"""


def test_sentences_are_kept_on_one_line_and_tables_code_and_fragments_are_not() -> None:
    assert prose(PAGE) == [
        "Return the element-wise maximum of two arrays.",
        "The first array of numbers to compare.",
        "Compares each number with the number at its place.",
    ]


def test_a_block_of_figures_and_signs_is_no_prose() -> None:
    assert prose("The values are (1, 2), (3, 4), (5, 6), (7, 8) and (9, 0).") == []


SAID = "What is said on both of the pages is kept on the first of them only."
OWN = "Held out pages tell of other things, which no page that is trained on tells of. " * 2


class Pages:
    """A docstring corpus of two pages that say the same and something of their own; counts how often it is read."""

    def __init__(self, fingerprint: str = "1") -> None:
        self.fingerprint, self.fetched = fingerprint, 0

    def fetch(self, out, *, context) -> None:
        self.fetched += 1
        context.report.notes["packages"] = f"numpy {self.fingerprint}"
        (out / "train.txt").write_text(f"{SAID}\n\n{PAGE}\n\n{PAGE}")
        (out / "heldout.txt").write_text(f"{SAID}\n\n{OWN}\n\n{PAGE}")


def test_no_sentence_is_held_out_that_was_trained_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(english, "SOURCE", Pages())
    splits = english.english(context(tmp_path))
    assert splits == {"train": ["\n".join([SAID, *prose(PAGE)])], "heldout": [OWN.strip()]}


def test_the_packages_are_read_once_for_a_scratch_folder_and_again_when_they_change(tmp_path, monkeypatch) -> None:
    pages = Pages()
    monkeypatch.setattr(english, "SOURCE", pages)
    first, again = context(tmp_path), context(tmp_path)
    assert english.english(first) == english.english(again)
    assert pages.fetched == 1
    assert first.report.notes == again.report.notes == {"packages": "numpy 1"}
    newer = Pages("2")
    monkeypatch.setattr(english, "SOURCE", newer)
    last = context(tmp_path)
    english.english(last)
    assert (newer.fetched, last.report.notes) == (1, {"packages": "numpy 2"})
