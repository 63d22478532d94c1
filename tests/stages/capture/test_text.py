"""Text that a model writes itself."""

from pathlib import Path

import pytest

from harness.errors import SourceError, SpecError
from harness.interfaces import Artifact
from harness.sources.corpus import read_documents
from harness.stages.capture.text import CaptureText
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import BOS, TURN, tiny_llama, tiny_tokenizer

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


def test_samples_follow_the_models_own_distribution(model, tmp_path):
    from transformers import AutoModelForCausalLM

    # One token each from the beginning token; the share of the likeliest token is binomial around its probability.
    tokenizer, loaded = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(model.path)
    with torch.inference_mode():
        logits = loaded(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1]
        p = (logits / 0.5).softmax(-1)
    stage, draws = CaptureText(tokens=1, length=1, temperature=0.5), 1500
    torch.manual_seed(0)
    with torch.inference_mode():
        drawn = [tuple(tokens) for tokens in stage._continue(loaded, [[tokenizer.bos_token_id]] * draws)]
    likeliest = int(p.argmax())
    share, expected = drawn.count((likeliest,)) / draws, float(p[likeliest])
    assert abs(share - expected) < 5 * (expected * (1 - expected) / draws) ** 0.5
