"""Classifiers of planted authors, and of authors that are really one."""

import random
from collections import Counter

import pytest

from harness.errors import Unsupported
from harness.evaluations.footprint.classifier import Attribution, Classifier, Example, cross_validated
from harness.evaluations.footprint.features import ngrams
from tests.evaluations.footprint.planted import written

PROMPTS = [f"prompt {number}" for number in range(30)]


def examples(**writes) -> list[Example]:
    return [Example(name, prompt, ngrams(write(prompt))) for name, write in writes.items() for prompt in PROMPTS]


def right(found: list[Example]) -> int:
    answers = cross_validated(found, top=40)
    return sum(answer.author == one.author for answer, one in zip(answers, found, strict=True))


def test_authors_with_words_of_their_own_are_told_apart_with_probabilities_that_add_up():
    found = examples(**{name: lambda prompt, name=name: written(name, prompt) for name in ("ada", "bob", "cyd")})
    classifier = Classifier.train(found, top=50)
    said = classifier.attribute([ngrams("the tide took the rope"), ngrams("a lamb in the barley")])
    assert [one.author for one in said] == ["bob", "cyd"]
    for one in said:
        assert set(one.probabilities) == {"ada", "bob", "cyd"}
        assert sum(one.probabilities.values()) == pytest.approx(1)
    assert right(found) == len(found)


def test_the_probability_is_the_one_of_the_penalized_likelihood():
    # One feature, n texts of each author: a has the word, b has not. With x = ln 2 for a, weights w and intercept b the
    # L2-penalized likelihood (C = 1) is stationary where n (1 - p_a) x = w and, by the intercept, 1 - p_a = p_b: hence
    # b = -w x / 2 and the logit of a text with the word is w x / 2. Solved here by bisection.
    import math

    n, x = len(PROMPTS), math.log(2)
    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        steeper = n * x / (1 + math.exp(middle * x / 2)) > middle
        low, high = (middle, high) if steeper else (low, middle)
    expected = 1 / (1 + math.exp(-low * x / 2))
    found = examples(a=lambda prompt: "word", b=lambda prompt: "")
    said = Classifier.train(found, top=1).attribute([Counter({"word": 1})])[0]
    assert said.probabilities["a"] == pytest.approx(expected, abs=1e-4)


def test_equal_models_that_write_the_same_are_right_exactly_half_the_time():
    # Twins share every text and so every fold's answer: of each pair exactly one is right.
    same = examples(one=lambda prompt: written("ada", prompt), two=lambda prompt: written("ada", prompt))
    assert right(same) == len(PROMPTS)


def test_equal_authors_that_draw_anew_are_no_better_told_apart_than_under_permuted_names():
    found = examples(
        one=lambda prompt: written("ada", "one " + prompt), two=lambda prompt: written("ada", "two " + prompt)
    )
    rng, permuted = random.Random(0), []
    for _ in range(39):
        swapped = {prompt: rng.random() < 0.5 for prompt in PROMPTS}
        names = {False: {"one": "one", "two": "two"}, True: {"one": "two", "two": "one"}}
        permuted.append(right([Example(names[swapped[e.prompt]][e.author], e.prompt, e.pieces) for e in found]))
    # Exchangeable by construction: the observed count lies outside the range of 39 permutations with chance 2 / 40.
    assert min(permuted) <= right(found) <= max(permuted)


def test_no_text_is_judged_by_a_classifier_that_learned_from_it():
    # Every text is one word that no other has: whoever had learned from it would know its author, nobody else can.
    found = [Example(name, prompt, Counter({name + prompt: 1})) for name in ("one", "two") for prompt in PROMPTS]
    answers = cross_validated(found, top=1000)
    assert all(answer.probabilities["one"] == pytest.approx(0.5, abs=1e-6) for answer in answers)


def test_no_prompt_is_both_learned_from_and_judged():
    # A prompt's word is in both its texts: learned from one author's, it would point away from the other.
    found = [Example(name, prompt, Counter({prompt: 1})) for name in ("one", "two") for prompt in PROMPTS]
    answers = cross_validated(found, top=1000)
    assert all(answer.probabilities["one"] == pytest.approx(0.5, abs=1e-6) for answer in answers)


def test_of_equally_likely_authors_the_first_by_name_is_taken():
    assert Attribution({"b": 0.4, "a": 0.4, "c": 0.2}).author == "a"


def test_an_empty_text_has_probable_authors_too():
    found = examples(ada=lambda prompt: written("ada", prompt), bob=lambda prompt: written("bob", prompt))
    assert sum(Classifier.train(found, top=9).attribute([Counter()])[0].probabilities.values()) == pytest.approx(1)


def test_teachers_that_wrote_nothing_are_refused():
    with pytest.raises(Unsupported, match="nothing that these features count"):
        Classifier.train(examples(a=lambda prompt: "", b=lambda prompt: ""), top=9)
