"""Text that a model writes itself."""

import json
import shutil
from pathlib import Path

import pytest

from harness.errors import SourceError, SpecError
from harness.interfaces import Artifact
from harness.sources.corpus import read_documents, read_pairs, write_documents
from harness.spec import Need
from harness.stages.capture.text import CaptureText
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import BOS, TEXT, TURN, tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch")
NEARLY_GREEDY = 1e-4
PROMPTS = ["What is a quantized model?", "Why?", "Count the jars of quartz, then name every wizard in the room."]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


def capture(model: Artifact, tmp_path: Path, *, seed: int = 0, **args) -> tuple[list[str], list[str], object]:
    from dataclasses import replace

    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = replace(context(tmp_path / "scratch"), seed=seed)
    CaptureText(**{"tokens": 400, "length": 12, "batch": 4, **args}).apply(model, out, context=used)
    corpus = artifact(out, "text")
    return read_documents(corpus, "train"), read_documents(corpus, "heldout"), used.report


def greedy(model: Artifact, text: str, length: int) -> str:
    """The most likely continuation, alone in its batch, one argmax at a time without a cache."""
    from transformers import AutoModelForCausalLM

    tokenizer, loaded = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(model.path)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    with torch.inference_mode():
        for _ in range(length):
            tokens.append(int(loaded(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                tokens.pop()
                break
    return tokenizer.decode(tokens)


def test_capture_is_a_proper_plugin():
    check_plugin("stages", CaptureText)


def test_enough_text_comes_split_in_two_and_the_same_for_the_same_seed(model, tmp_path):
    train, heldout, report = capture(model, tmp_path / "a")
    assert train
    assert len(heldout) == -(-(len(train) + len(heldout)) // 20)
    assert not set(train) & set(heldout)
    assert report.tokens >= 400
    assert capture(model, tmp_path / "b")[:2] == (train, heldout)
    assert capture(model, tmp_path / "c", seed=1)[0] != train


def test_text_from_nothing_carries_no_special_tokens(model, tmp_path):
    train, _, _ = capture(model, tmp_path)
    assert not any(BOS in text for text in train)


def test_prompts_of_any_length_are_continued_as_if_they_were_alone(model, tmp_path):
    # So cold that sampling is the argmax: a wrong mask or position in a padded batch would change the words.
    train, heldout, _ = capture(model, tmp_path, prompts=PROMPTS, temperature=NEARLY_GREEDY, tokens=30, batch=3)
    rendered = [f"{BOS}{TURN}user\n{prompt}<|eos|>\n{TURN}assistant\n" for prompt in PROMPTS]
    assert sorted(train + heldout) == sorted(greedy(model, text, 12) for text in rendered)


def test_a_model_that_always_says_the_same_is_an_error(model, tmp_path):
    with pytest.raises(SourceError, match="1 different texts"):
        capture(model, tmp_path, temperature=NEARLY_GREEDY)


def test_a_sample_longer_than_the_model_can_attend_to_is_refused(model, tmp_path):
    with pytest.raises(SpecError, match="do not fit"):
        capture(model, tmp_path, length=512)


@pytest.mark.parametrize(
    "args", [{"tokens": 0}, {"prompts": "Hello"}, {"prompts": [""]}, {"temperature": 0}, {"batch": 0}]
)
def test_arguments_out_of_range_are_refused_with_what_is_allowed(args):
    with pytest.raises(ValueError, match="allowed"):
        CaptureText(**{"tokens": 9, **args})


# ---- beginnings of documents ----


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=[*TEXT.splitlines(), "short"], heldout=["held out"])
    return artifact(folder, "text")


def continue_corpus(model: Artifact, corpus: Artifact, tmp_path: Path, **args) -> tuple[Artifact, object]:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch", corpus=corpus)
    asked = {"tokens": 200, "length": 12, "batch": 4, "corpus": "docstrings:default", "prompt_tokens": 9, **args}
    CaptureText(**asked).apply(model, out, context=used)
    return artifact(out, "text"), used.report


def test_beginnings_of_documents_are_continued_and_kept_as_pairs(model, corpus, tmp_path):
    written, report = continue_corpus(model, corpus, tmp_path)
    tokenizer = tiny_tokenizer()
    beginnings = {tokenizer.decode(tokenizer.encode(line)[:9]) for line in TEXT.splitlines()}
    for split in ("train", "heldout"):
        pairs = read_pairs(written, split)
        assert [pair.prompt + pair.answer for pair in pairs] == read_documents(written, split)
        assert {pair.prompt for pair in pairs} <= beginnings
        assert {pair.kind for pair in pairs} <= {"ended", "cut"}
    # Every beginning is used before one is used again, and "short" is too short to have one.
    assert {pair.prompt for split in ("train", "heldout") for pair in read_pairs(written, split)} == beginnings
    assert report.tokens >= 200


def test_at_temperature_0_the_answers_are_the_likeliest(model, corpus, tmp_path):
    written, _ = continue_corpus(model, corpus, tmp_path, temperature=0, tokens=60)
    pairs = [pair for split in ("train", "heldout") for pair in read_pairs(written, split)]
    assert len(pairs) >= 4
    for pair in pairs:
        assert pair.prompt + pair.answer == greedy(model, pair.prompt, 12).replace(TURN, "")


@pytest.mark.parametrize(("ends", "kinds"), [(list(range(100, 384)), {"ended"}), (None, {"cut"})])
def test_an_answer_says_whether_the_model_ended_it(ends, kinds, model, corpus, tmp_path):
    # Nearly three in four tokens end the text, so within 40 tokens all do; without an end token none does.
    folder = tmp_path / "ending"
    shutil.copytree(model.path, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": ends}))
    written, _ = continue_corpus(artifact(folder, "hf"), corpus, tmp_path, tokens=40, length=40)
    assert {pair.kind for split in ("train", "heldout") for pair in read_pairs(written, split)} == kinds


def test_the_corpus_is_asked_for_only_when_it_is_named():
    assert CaptureText(tokens=9).needs == ()
    need = Need(name="corpus", source="docstrings:numpy")
    assert CaptureText(tokens=9, corpus="docstrings:numpy").needs == (need,)


def test_a_corpus_of_documents_shorter_than_the_prompts_is_refused(model, corpus, tmp_path):
    with pytest.raises(SourceError, match="longer than 500 tokens"):
        continue_corpus(model, corpus, tmp_path, prompt_tokens=500, length=1)


@pytest.mark.parametrize(
    "args", [{"prompts": ["Hello"]}, {"prompt_tokens": 0}, {"corpus": "nowhere"}, {"temperature": -1}]
)
def test_arguments_that_do_not_go_with_a_corpus_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        CaptureText(**{"tokens": 9, "corpus": "docstrings:default", **args})
