"""Exercises: right, endless, the same every time, and never both trained on and asked."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.sources.lab.exercises import KINDS, LARGEST_OPERANDS, Exercise, exercises
from tests.sources.lab.solving import solve


def draw(kind: str, count: int = 300, *, seed: int = 0, split: str = "train") -> list[Exercise]:
    return list(islice(exercises(kind, seed=seed, split=split), count))


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_what_reading_the_prompt_gives(kind, split) -> None:
    for one in draw(kind, 500, split=split):
        assert one.kind == kind
        assert one.answer == solve(kind, one.prompt), one.prompt
        assert one.text == f"{one.prompt}{one.answer}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_is_in_both_splits_whatever_the_seeds(kind) -> None:
    train = {one.prompt for seed in range(5) for one in draw(kind, seed=seed)}
    heldout = {one.prompt for seed in range(5) for one in draw(kind, seed=seed + 99, split="heldout")}
    assert train
    assert heldout
    assert not train & heldout


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_seed_and_split_give_the_same_exercises(kind) -> None:
    assert draw(kind) == draw(kind)
    assert draw(kind) != draw(kind, seed=1)


@settings(max_examples=30)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), split=st.sampled_from(["train", "heldout"]))
def test_every_exercise_says_the_split_it_was_drawn_for(kind, seed, split) -> None:
    assert {one.split for one in draw(kind, 3, seed=seed, split=split)} == {split}


def test_the_number_of_different_sums_is_the_number_that_is_documented() -> None:
    # Plus: 30 x 30. Minus: pairs with a >= b, 30 x 31 / 2 = 465. Times: 10 x 10. Three one-digit terms: 1000.
    count = max(LARGEST_OPERANDS) + 1
    forms = [
        *(f"{a}+{b}=" for a in range(count) for b in range(count)),
        *(f"{a}-{b}=" for a in range(count) for b in range(a + 1)),
        *(f"{a}*{b}=" for a in range(10) for b in range(10)),
        *(f"{a}+{b}+{c}=" for a in range(10) for b in range(10) for c in range(10)),
    ]
    assert len(forms) == len(set(forms)) == 2465
    drawn = {one.prompt for split in ("train", "heldout") for one in draw("arithmetic", 3000, split=split)}
    assert drawn <= set(forms)
    heldout = [form for form in forms if Exercise("arithmetic", form, "").split == "heldout"]
    assert 68 < len(heldout) < 178  # 2465 fair draws at 1/20: mean 123, standard deviation 10.8, five either side


def test_answers_start_where_a_tokenizer_of_digits_and_bytes_starts_a_token() -> None:
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    for kind in KINDS:
        for one in draw(kind, 100):
            starts = {start for _, (start, _) in cut.pre_tokenize_str(one.text)}
            assert len(one.prompt) in starts, one


def test_every_form_of_a_kind_comes() -> None:
    prompts = {kind: [one.prompt for one in draw(kind)] for kind in KINDS}
    for sign in "+-*":
        assert any(prompt.count(sign) == 1 for prompt in prompts["arithmetic"])
    assert any(prompt.count("+") == 2 for prompt in prompts["arithmetic"])
    assert {prompt.split(":")[0] for prompt in prompts["copy"]} == {"copy", "reverse"}
    assert {prompt.count("=") - 1 for prompt in prompts["lookup"]} == {2, 3, 4, 5}
    asked = {prompt.split(". ")[-1].split(" ")[0] for prompt in prompts["qa"]}
    assert asked == {"Where", "Who", "What", "Which"}


def test_a_kind_that_is_not_there_is_refused_at_once_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="did you mean 'arithmetic'") as caught:
        exercises("arithmetics", seed=0, split="train")
    assert "lookup" in str(caught.value)
