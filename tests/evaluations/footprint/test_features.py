"""Texts taken apart by hand."""

import doctest
import math
from collections import Counter

import nltk
import numpy as np
import pytest

from harness.errors import Unsupported
from harness.evaluations.footprint import features
from harness.evaluations.footprint.features import characters, matrix, ngrams, reader, templates, vocabulary


def test_the_examples_in_the_module_hold():
    assert doctest.testmod(features).failed == 0


def test_word_ngrams_are_all_runs_of_one_to_three_words_in_lower_case():
    # Words: the cat , the cat
    assert ngrams("The cat, the cat") == {
        "the": 2,
        "cat": 2,
        ",": 1,
        "the cat": 2,
        "cat ,": 1,
        ", the": 1,
        "the cat ,": 1,
        "cat , the": 1,
        ", the cat": 1,
    }


def test_character_ngrams_are_all_runs_of_two_to_four_with_one_space_for_any():
    assert characters("aab\n\t c") == characters("aab c")
    assert characters("aab c") == {
        **{"aa": 1, "ab": 1, "b ": 1, " c": 1},
        **{"aab": 1, "ab ": 1, "b c": 1},
        **{"aab ": 1, "ab c": 1},
    }
    assert characters("Aa") != characters("aa")


def test_templates_are_runs_of_four_parts_of_speech():
    parts = {"she": "PRP", "sells": "VBZ", "sea": "NN", "shells": "NNS", ".": "."}
    tagged = templates("she sells sea shells.", tag=lambda words: [parts[word] for word in words])
    assert tagged == {"PRP VBZ NN NNS": 1, "VBZ NN NNS .": 1}


@pytest.mark.parametrize("take_apart", [ngrams, characters, lambda text: templates(text, tag=list)])
def test_a_text_without_words_has_no_pieces(take_apart):
    assert take_apart(" \n ") == Counter()


def test_the_pieces_that_count_are_those_in_most_texts_of_each_author():
    texts = [Counter("aab"), Counter("ab"), Counter("ac"), Counter("xxxxy"), Counter("yz"), Counter("z")]
    authors = ["one"] * 3 + ["two"] * 3
    # one: a in 3 texts, b in 2, c in 1. two: y and z in 2 each, x in 1 however often.
    assert vocabulary(texts, authors, top=1) == ("a", "y")
    assert vocabulary(texts, authors, top=2) == ("a", "b", "y", "z")
    assert vocabulary(texts, authors, top=9) == ("a", "b", "c", "x", "y", "z")


def test_a_feature_is_the_logarithm_of_one_more_than_the_count():
    found_NF = matrix([Counter({"b": 3, "other": 5}), Counter(), Counter({"a": 1, "b": 1})], ("a", "b"))
    expected_NF = [[0, math.log(4)], [0, 0], [math.log(2), math.log(2)]]
    np.testing.assert_allclose(found_NF.toarray(), expected_NF)


def test_parts_of_speech_without_nltks_data_are_refused_with_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(Unsupported, match="averaged_perceptron_tagger_eng") as refused:
        reader("pos")
    assert refused.value.remedy.startswith("python -m nltk.downloader averaged_perceptron_tagger_eng")


def test_parts_of_speech_come_from_nltks_own_tagger_where_its_data_are(monkeypatch, tmp_path):
    from nltk.tag.perceptron import PerceptronTagger

    folder = tmp_path / "taggers" / features.TAGGER
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    sentence = [("one", "CD"), ("man", "NN"), ("sees", "VBZ"), ("two", "CD"), ("dogs", "NNS")]
    trained = PerceptronTagger(load=False)
    trained.train([sentence] * 30)
    trained.save_to_json(lang="eng", loc=str(folder))
    assert reader("pos")("one man sees two dogs") == {"CD NN VBZ CD": 1, "NN VBZ CD NNS": 1}
