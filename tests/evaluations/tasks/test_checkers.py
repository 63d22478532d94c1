"""Every checker passes what follows its instruction and fails what does not; what is right is plain to see."""

import pytest

from harness.evaluations.tasks.offline.checkers import CHECKERS, follows, sentences, words

CASES = [
    ({"check": "is_uppercase"}, "ALL LOUD, 2 TIMES!", "Almost LOUD"),
    ({"check": "is_uppercase"}, "A", "123"),
    ({"check": "is_lowercase"}, "all quiet, 2 times.", "Not quiet"),
    ({"check": "has_no_commas", "at_least": 3}, "one two three", "one, two three"),
    ({"check": "has_no_commas", "at_least": 3}, "one two three.", "one two"),
    ({"check": "contains_words", "wanted": ["cat", "Dog"]}, "A CAT met a dog.", "A catalogue met a dog."),
    ({"check": "avoids_word", "unwanted": "cat", "at_least": 2}, "a catalogue", "a Cat"),
    ({"check": "avoids_word", "unwanted": "cat", "at_least": 2}, "a dog", "dog"),
    ({"check": "has_bullets", "count": 2}, "Here:\n- one\n* two", "- one\n-\n"),
    ({"check": "has_bullets", "count": 2}, "  • one\n  • two", "- one\n- two\n- three"),
    ({"check": "has_numbered_lines", "count": 3}, "Yes:\n1. a\n2) b\n3. c", "1. a\n3. b\n2. c"),
    ({"check": "has_numbered_lines", "count": 1}, "1. a", "1. a\n2. b"),
    ({"check": "has_sentences", "count": 2}, "It rains. Does it?", "It rains, does it?"),
    ({"check": "has_sentences", "count": 1}, "Pi is 3.14 or so", "Pi is 3. It is not."),
    ({"check": "has_word_count", "low": 2, "high": 3}, "don't stop-now", "one"),
    ({"check": "has_word_count", "low": 2, "high": 3}, "one two three", "one two three four"),
    ({"check": "starts_with", "phrase": "In short,"}, " In short, yes", "in short, yes"),
    ({"check": "ends_with", "phrase": "The end."}, "So it was. The end.\n", "The end. Or not"),
    ({"check": "is_quoted"}, ' "A word." ', '"A word." he said'),
    ({"check": "is_quoted"}, "“A word.”", '""'),
    ({"check": "is_json_with", "keys": ["a", "b"]}, '{"b": 1, "a": [2]}', '{"a": 1}'),
    ({"check": "is_json_with", "keys": ["a"]}, '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ({"check": "is_json_with", "keys": ["a"]}, '{"a": {}}', '[{"a": 1}]'),
    ({"check": "is_one_of", "allowed": ["Yes", "No"]}, " yes.", "yes and no"),
    ({"check": "has_title"}, "<<A day>> It rains.", "<<>> It rains."),
]


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_a_checker_tells_an_instruction_followed_from_one_ignored(check, good, bad) -> None:
    assert follows(good, check)
    assert not follows(bad, check)


def test_every_checker_is_tried_above() -> None:
    assert {check["check"] for check, _, _ in CASES} == set(CHECKERS)


@pytest.mark.parametrize("check", [check for check, _, _ in CASES], ids=lambda check: check["check"])
def test_nothing_passes_by_saying_nothing(check) -> None:
    assert not follows(" \n", check)


def test_deeply_nested_brackets_are_no_json_and_no_crash() -> None:
    assert not follows("[" * 100_000, {"check": "is_json_with", "keys": ["a"]})


def test_words_are_runs_of_letters_and_digits_with_inner_apostrophes() -> None:
    assert words("Don't stop_now — it's 3 o'clock, é-té!") == ["Don't", "stop", "now", "it's", "3", "o'clock", "é-té"]


def test_sentences_end_at_marks_that_space_follows() -> None:
    assert sentences('He said "Go!" Then 3.5 apples fell... Done') == [
        'He said "Go!',
        "Then 3.5 apples fell...",
        "Done",
    ]
