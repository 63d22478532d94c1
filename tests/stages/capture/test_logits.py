"""Stored reference answers give a model's logits back, for heads that allow hidden states and for one that does not."""

from pathlib import Path

import numpy as np
import pytest

from harness.errors import SourceError
from harness.interfaces import Artifact
from harness.sources.corpus import write_documents
from harness.stages.capture.logits import HEAD_TOLERANCE, CaptureLogits
from harness.stages.capture.reference_logits import ReferenceLogits
from harness.stages.capture.windows import cut_windows
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    sentences = TEXT.splitlines()
    write_documents(folder, train=["never looked at"], heldout=[f"{i} {s} äß" for i in range(9) for s in sentences])
    return artifact(folder, "text")


def capture(model: Artifact, corpus: Artifact, tmp_path: Path, **args) -> tuple[ReferenceLogits, dict]:
    out = tmp_path / "out"
    out.mkdir()
    used = context(tmp_path / "scratch", corpus=corpus)
    CaptureLogits(**{"windows": 3, "length": 32, **args}).apply(model, out, context=used)
    return ReferenceLogits.open(out), used.report.notes


def logits_of(folder: Path, tokens: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return loaded(torch.from_numpy(tokens)[None]).logits[0].numpy()


def test_capture_is_a_proper_plugin():
    check_plugin("stages", CaptureLogits)


def test_hidden_states_and_head_give_the_models_logits_back(model, corpus, tmp_path):
    found, notes = capture(model, corpus, tmp_path)
    assert notes["storage"] == found.meta.storage == "hidden"
    assert notes["largest_logit_error"] <= HEAD_TOLERANCE
    for window in range(3):
        expected = logits_of(model.path, found.tokens_NT[window])
        np.testing.assert_allclose(found.logits(window, slice(0, 32)), expected, atol=HEAD_TOLERANCE)


def test_the_texts_encode_to_the_stored_tokens(model, corpus, tmp_path):
    from transformers import AutoTokenizer

    found, _ = capture(model, corpus, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    for window, tokens_T in zip(found.meta.windows, found.tokens_NT, strict=True):
        assert tokenizer.encode(window.text, add_special_tokens=False) == tokens_T.tolist()
        skipped = len(window.text.encode()) - window.predicted_bytes
        assert skipped == len(tokenizer.decode(tokens_T[:1]).encode())


def test_a_head_with_a_bias_is_stored_as_logits(model, corpus, tmp_path, monkeypatch):
    import harness.stages.capture.logits as module

    load_model = module.load_model

    def with_bias(*args, **kwargs):
        loaded = load_model(*args, **kwargs)
        loaded.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, loaded.config.vocab_size))
        return loaded

    monkeypatch.setattr(module, "load_model", with_bias)
    found, notes = capture(model, corpus, tmp_path)
    assert notes["storage"] == found.meta.storage == "logits"
    plain = logits_of(model.path, found.tokens_NT[1])
    expected = plain + np.linspace(-1, 1, plain.shape[1], dtype=np.float32)
    np.testing.assert_allclose(found.logits(1, slice(4, 9)), expected[4:9], atol=1e-5)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["logits.npy", "meta.json", "tokens.npy"]


def test_a_token_that_the_tokenizer_puts_first_becomes_the_prefix(corpus, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = tiny_llama(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    found, _ = capture(artifact(folder, "hf"), corpus, tmp_path)
    assert found.meta.prefix == (tokenizer.bos_token_id,)
    assert found.tokens_NT.shape == (3, 32)
    assert (found.tokens_NT[:, 0] == tokenizer.bos_token_id).all()
    assert all(window.predicted_bytes == len(window.text.encode()) for window in found.meta.windows)


def test_windows_are_the_same_whatever_the_order_of_documents():
    def by_word(text: str) -> tuple[list[int], list[int]]:
        ends = [at for at in range(1, len(text) + 1) if at == len(text) or text[at] == " "]
        return [sum(map(ord, text[:end])) for end in ends], ends

    documents = [f"{i} one two three four five six seven eight nine ten" for i in range(50)]
    forwards = cut_windows(documents, by_word, count=4, length=10)
    assert forwards == cut_windows(documents[::-1], by_word, count=4, length=10)
    assert [len(window.tokens) for window in forwards] == [10] * 4


def test_a_text_that_would_encode_differently_when_cut_is_passed_over():
    # Pairs of letters are one token, so a text cut to an odd number of letters ends in a token of its own.
    def unsteady(text: str) -> tuple[list[int], list[int]]:
        if text.startswith("bad"):
            return [len(text)] * len(text), list(range(1, len(text) + 1))
        return [ord(char) for char in text], list(range(1, len(text) + 1))

    documents = ["bad" + "x" * 100, "good" + "y" * 100]
    found = cut_windows(documents, unsteady, count=1, length=8)
    assert [window.text for window in found] == ["goodyyyy"]


def test_too_little_text_is_said_and_not_repeated(model, corpus, tmp_path):
    with pytest.raises(SourceError, match="windows of 32 tokens, 500 are asked for"):
        capture(model, corpus, tmp_path, windows=500)


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"length": 7}, {"corpus": "no-scheme"}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="allowed"):
        CaptureLogits(**wrong)
