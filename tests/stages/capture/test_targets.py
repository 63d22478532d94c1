"""A teacher's predictions on disk: its likeliest tokens and the tail, of the very tokens a student will read."""

from dataclasses import replace

import numpy as np
import pytest

from harness.errors import CorruptArtifact, ModelError, SpecError
from harness.interfaces import Artifact
from harness.sources.corpus import pack_blocks, read_documents, write_documents
from harness.spec import Need
from harness.stages.capture.targets import CaptureTargets, Targets
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch")
SMALL = {"blocks": 3, "top_k": 5, "sequence": 16, "heldout_blocks": 2, "autocast": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=TEXT.splitlines(), heldout=TEXT.upper().splitlines())
    return artifact(folder, "text")


def capture(model: Artifact, corpus: Artifact, tmp_path, *, seed: int = 0, **args) -> tuple[Artifact, object]:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = replace(context(tmp_path / "scratch", corpus=corpus), seed=seed)
    CaptureTargets(**{**SMALL, **args}).apply(model, out, context=used)
    return artifact(out, "files"), used.report


def test_capture_is_a_proper_plugin():
    check_plugin("stages", CaptureTargets)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_stored_is_the_models_own_distribution_folded_at_the_tail(temperature, model, corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    captured, report = capture(model, corpus, tmp_path, temperature=temperature)
    loaded = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    for split, blocks in (("train", 3), ("heldout", 2)):
        found = Targets.read(captured, split)
        assert found.ids_NTK.shape == found.log_probs_NTK.shape == (blocks, 16, 5)
        with torch.inference_mode():
            logits = loaded(torch.from_numpy(found.tokens_NT.copy())).logits.double().numpy() / temperature
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        order = np.argsort(-p, axis=-1)
        np.testing.assert_array_equal(found.ids_NTK, order[..., :5])
        np.testing.assert_allclose(
            np.exp(found.log_probs_NTK), np.take_along_axis(p, order[..., :5], axis=-1), rtol=1e-3
        )
        rest = np.take_along_axis(p, order[..., 5:], axis=-1).sum(-1)
        np.testing.assert_allclose(np.exp(found.tails_NT), rest, rtol=1e-3, atol=1e-6)
    assert (report.tokens, report.notes["vocabulary"]) == (5 * 16, 384)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_tokens_are_those_a_distiller_with_the_same_seed_reads(seed, model, corpus, tmp_path):
    captured, _ = capture(model, corpus, tmp_path, seed=seed)
    tokenizer = tiny_tokenizer()
    for split, blocks in (("train", 3), ("heldout", 2)):
        expected = pack_blocks(
            read_documents(corpus, split),
            encode=tokenizer.encode,
            shape=(blocks, 16),
            separator=tokenizer.eos_token_id,
            seed=seed,
        )
        found = Targets.read(captured, split)
        np.testing.assert_array_equal(found.tokens_NT, expected)
        found.require(expected[:1])  # a student that reads less of the same text
        with pytest.raises(SpecError, match="other tokens"):
            found.require(expected[::-1])
        with pytest.raises(SpecError, match="other tokens"):
            found.require(np.concatenate([expected, expected]))


def test_ids_take_two_bytes_where_the_vocabulary_fits(model, corpus, tmp_path):
    captured, _ = capture(model, corpus, tmp_path)
    assert Targets.read(captured, "train").ids_NTK.dtype == np.uint16


def test_nothing_held_out_is_stored_as_nothing(model, corpus, tmp_path):
    captured, _ = capture(model, corpus, tmp_path, heldout_blocks=0)
    assert Targets.read(captured, "heldout").ids_NTK.shape == (0, 16, 5)


def test_another_folder_is_no_stored_predictions(corpus):
    with pytest.raises(CorruptArtifact, match="not the stored predictions"):
        Targets.read(corpus, "train")


def test_a_pickled_array_is_refused(model, corpus, tmp_path):
    captured, _ = capture(model, corpus, tmp_path)
    np.save(captured.path / "train" / "ids.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptArtifact, match="not the stored predictions"):
        Targets.read(captured, "train")


def test_as_many_tokens_as_there_are_leave_no_tail_and_are_refused(model, corpus, tmp_path):
    with pytest.raises(SpecError, match="more tokens are asked for"):
        capture(model, corpus, tmp_path, top_k=384)


def test_logits_that_are_no_numbers_are_the_models_error(corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "broken")
    broken = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(broken.model.norm.weight, 3e38)
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match="not finite in block 0"):
        capture(artifact(folder, "hf"), corpus, tmp_path)


def test_the_corpus_is_asked_for_by_name():
    assert CaptureTargets(blocks=1, top_k=1).needs == (Need(name="corpus", source="docstrings:default"),)


@pytest.mark.parametrize(
    "args",
    [{"blocks": 0}, {"top_k": 0}, {"sequence": 1}, {"heldout_blocks": -1}, {"temperature": 0}, {"corpus": "nowhere"}],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=f"{next(iter(args))}.*allowed"):
        CaptureTargets(**{**SMALL, **args})
