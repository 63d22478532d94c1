"""What a model writes after the beginnings of documents."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import CorruptArtifact, ModelError, SourceError, SpecError
from harness.evaluations.footprint.footprint import PROMPTS, Footprint
from harness.interfaces import Artifact, EvaluationContext
from harness.record import ArtifactFacts
from harness.runtimes.transformers import Transformers
from harness.sources.corpus import write_documents
from harness.spec import Hardware, Use
from harness.stages.capture.continuations import (
    FILE,
    CaptureContinuations,
    Continuation,
    cut_prompts,
    read_continuations,
)
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import EOS, TEXT, tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch")

WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[start : start + 12]) for start in range(0, 72, 3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=DOCUMENTS[::2], heldout=DOCUMENTS[1::2])
    return artifact(folder, "text")


def capture(model: Artifact, corpus: Artifact, folder: Path, *, seed: int = 0, **args):
    out = folder / "out"
    out.mkdir(parents=True)
    used = replace(context(folder / "scratch", corpus=corpus), seed=seed)
    small = {"corpus": "path:/corpus", "samples": 6, "prompt_words": 4, "max_tokens": 8, "batch": 4}
    CaptureContinuations(**{**small, **args}).apply(model, out, context=used)
    return read_continuations(artifact(out, "files")), used.report


def greedy_tokens(model: Artifact, prompt: str, length: int) -> list[int]:
    """The likeliest tokens, alone, one argmax at a time without a cache, without the end token."""
    from transformers import AutoModelForCausalLM

    tokenizer, loaded = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(model.path)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    start = len(tokens)
    with torch.inference_mode():
        for _ in range(length):
            best = int(loaded(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            tokens.append(best)
    return tokens[start:]


def test_capture_is_a_proper_plugin():
    check_plugin("stages", CaptureContinuations)


def test_every_prompt_is_the_beginning_of_a_training_document_and_the_seed_decides_the_texts(model, corpus, tmp_path):
    found, report = capture(model, corpus, tmp_path / "a")
    assert len({one.prompt for one in found}) == 6
    beginnings = {" ".join(document.split()[:4]) for document in DOCUMENTS[::2]}
    assert {one.prompt for one in found} <= beginnings
    # A text holds at most 8 tokens; the end token counts as written and is not part of the text.
    assert 6 <= report.tokens <= 48
    assert not any(EOS in one.text for one in found)
    assert report.notes == {"continuations": 6, "characters": sum(len(one.text) for one in found)}
    assert capture(model, corpus, tmp_path / "b")[0] == found
    other = capture(model, corpus, tmp_path / "c", seed=1)[0]
    assert [one.prompt for one in other] == [one.prompt for one in found]
    assert [one.text for one in other] != [one.text for one in found]


def test_at_temperature_zero_a_batch_is_continued_as_each_prompt_alone(model, corpus, tmp_path):
    found, _ = capture(model, corpus, tmp_path, temperature=0.0)
    assert [one.text for one in found] == [
        tiny_tokenizer().decode(greedy_tokens(model, one.prompt, 8)) for one in found
    ]


def test_the_stage_leaves_torchs_random_state_and_threads_as_they_were(model, corpus, tmp_path):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    capture(model, corpus, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def with_settings(model: Artifact, out: Path, **settings) -> Artifact:
    """The same model with other settings for generation."""
    shutil.copytree(model.path, out)
    file = out / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return artifact(out, "hf")


def test_penalties_in_the_models_own_settings_do_not_bend_the_distribution(model, corpus, tmp_path):
    bent = with_settings(model, tmp_path / "bent", top_k=1, repetition_penalty=9.0)
    plain, _ = capture(model, corpus, tmp_path / "plain")
    assert capture(bent, corpus, tmp_path / "penalized")[0] == plain


def test_a_text_ends_before_any_of_the_models_end_tokens(model, corpus, tmp_path):
    # One more end token: the third that the model writes greedily after the first prompt.
    plain, _ = capture(model, corpus, tmp_path / "plain", temperature=0.0)
    third = greedy_tokens(model, plain[0].prompt, 8)[2]
    ends = with_settings(model, tmp_path / "ends", eos_token_id=[tiny_tokenizer().eos_token_id, third])
    found, report = capture(ends, corpus, tmp_path / "cut", temperature=0.0)
    written = 0
    for one in found:
        tokens = greedy_tokens(model, one.prompt, 8)
        before = tokens.index(third) if third in tokens else len(tokens)
        assert one.text == tiny_tokenizer().decode(tokens[:before])
        written += min(before + 1, 8)
    assert len(tiny_tokenizer().encode(plain[0].text)) > 2
    assert report.tokens == written


def test_weights_that_are_not_numbers_are_an_error(model, corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    loaded.model.norm.weight.data.fill_(3e38)  # whatever is above 1.14 overflows
    loaded.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="logits"):
        capture(artifact(tmp_path / "broken", "hf"), corpus, tmp_path, temperature=0.0)


def test_a_continuation_longer_than_the_model_can_attend_to_is_refused(model, corpus, tmp_path):
    with pytest.raises(SpecError, match="fit into the model"):
        capture(model, corpus, tmp_path, max_tokens=512)


def test_a_corpus_with_too_few_beginnings_is_refused(model, corpus, tmp_path):
    with pytest.raises(SourceError, match="12 usable beginnings of 4 words and 13 are asked for"):
        capture(model, corpus, tmp_path, samples=13)


def test_prompts_keep_the_white_space_of_their_document_and_come_once():
    documents = ["  a  b\nc d e", "a  b\nc d f", "a b c", "x y\tz w"]
    # "a b c" has nothing after its third word; the first two begin alike.
    assert sorted(cut_prompts(documents, words=3, count=2)) == ["a  b\nc", "x y\tz"]
    assert cut_prompts(documents, words=3, count=1, without={"a  b\nc"}) == ["x y\tz"]


def test_prompts_do_not_depend_on_the_order_of_documents():
    assert cut_prompts(DOCUMENTS, words=4, count=5) == cut_prompts(DOCUMENTS[::-1], words=4, count=5)


def test_what_was_written_is_read_back_whatever_characters_are_in_it(tmp_path):
    said = [Continuation(prompt="a\nb", text='line separator next line\x85form\x0cfeed\r\n"quoted" é')]
    (tmp_path / FILE).write_text("".join(one.model_dump_json() + "\n" for one in said), encoding="utf-8", newline="\n")
    assert read_continuations(artifact(tmp_path, "files")) == said


@pytest.mark.parametrize("content", [None, "not json\n", '{"prompt": "a"}\n', "\n"])
def test_a_file_that_the_stage_did_not_write_is_corrupt(tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(CorruptArtifact, match="not the continuations"):
        read_continuations(artifact(tmp_path, "files"))


@pytest.mark.parametrize(
    "args",
    [
        {"samples": 0},
        {"prompt_words": 0},
        {"max_tokens": 0},
        {"batch": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"corpus": "nowhere"},
    ],
)
def test_arguments_out_of_range_are_refused_with_what_is_allowed(args):
    with pytest.raises(ValueError, match="allowed"):
        CaptureContinuations(**args)


def test_a_model_is_recognized_by_texts_that_it_wrote_elsewhere(tmp_path):
    # Each student is one of two teachers to the bit, on other prompts and through a runtime.
    (tmp_path / "corpus").mkdir()
    texts = [f"{number} {document} {number}" for number in range(4) for document in DOCUMENTS]
    write_documents(tmp_path / "corpus", train=texts[::2], heldout=texts[1::2])
    prompts = artifact(tmp_path / "corpus", "text")
    models = {name: artifact(tiny_llama(tmp_path / name, seed=seed), "hf") for seed, name in enumerate(("one", "two"))}
    evaluation = Footprint(
        teachers={"one": {"source": "path:/one"}, "two": {"source": "path:/two"}},
        **{"prompts": "path:/corpus", "samples": 40, "prompt_words": 4, "max_tokens": 48, "temperature": 0.7},
        features="characters",
    )
    artifacts = {PROMPTS: prompts}
    for need, teacher in zip(evaluation.needs[1:], models.values(), strict=True):
        out = tmp_path / need.name
        out.mkdir()
        stage = CaptureContinuations(**need.stages[-1].args)
        stage.apply(teacher, out, context=context(tmp_path / "scratch", corpus=prompts))
        artifacts[need.name] = artifact(out, "files")
    for name, model in models.items():
        lineage = (Use(use="distill.logits", args={"teacher": {"source": f"path:/{name}"}}),)
        student = Artifact(model.path, ArtifactFacts(lineage=lineage, format="hf", digest="", size_bytes=0))
        used = EvaluationContext(artifacts, student, Hardware(), 0, 0.0, tmp_path, lambda fraction, message: None)
        with Transformers().open(student, hardware=Hardware()) as session:
            rows = list(evaluation.observe(session, context=used))
        found = {metric.name: metric for metric in evaluation.summarize(rows)}
        assert found["accuracy"].interval.low > 0.5
        assert found["separability"].interval.low > 0.5
