"""Sequence-level distillation on tiny models: a student learns its teacher's text, whatever its tokenizer."""

import math

import numpy as np
import pytest

from harness.errors import SourceError, SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, read_pairs, write_documents, write_pairs
from harness.spec import REFERENCE
from harness.stages.distill.sequence import DistillSequence
from harness.stages.distill.written import read_passages
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import a_corpus, a_student, a_teacher, a_text_by, another, assert_continues, run
from tests.tiny import tiny_tokenizer

torch = pytest.importorskip("torch")
FAST = {"tokens": 512, "batch": 2, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 64}  # 8 steps


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("teacher")
    # Half as hot as its own distribution, so that there is something regular to learn.
    return a_text_by(a_teacher(folder / "model"), a_corpus(folder), folder, temperature=0.5, tokens=1200)


@pytest.fixture
def used(tmp_path, written) -> StageContext:
    return context(tmp_path / "scratch", written=written)


def distill(student: Artifact, used: StageContext, **args) -> bytes:
    return run(DistillSequence(**{**FAST, **args}), student, used.scratch.parent / "out", used)


def pairs_as_artifact(folder, train: list[Pair]) -> Artifact:
    folder.mkdir()
    write_documents(folder, train=[one.prompt + one.answer for one in train], heldout=["held out"])
    write_pairs(folder, train=train, heldout=[Pair(kind="cut", prompt="held", answer=" out")])
    return artifact(folder, "text")


def test_sequence_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillSequence)


@pytest.mark.parametrize("loss_on", ["generated", "all"])
def test_the_student_learns_what_its_teacher_would_write(loss_on, student, used):
    distill(student, used, loss_on=loss_on, tokens=1024)
    notes = used.report.notes
    assert notes["heldout_nll_after"] < notes["heldout_nll_before"]
    assert notes["loss_last"] < notes["loss_first"]
    assert (notes["steps"], used.report.tokens) == (16, 1024)


def test_a_student_with_another_tokenizer_learns_too(used, tmp_path):
    stranger = a_student(tmp_path / "stranger", vocab=320)
    distill(stranger, used)
    assert used.report.notes["heldout_nll_after"] < used.report.notes["heldout_nll_before"]


@pytest.mark.parametrize("vocab", [320, 384])
def test_prompt_and_response_are_told_apart_by_what_their_tokens_hold(vocab, written):
    tokenizer = tiny_tokenizer(vocab)
    pairs = read_pairs(written, "train")
    passages = read_passages(written, "train", tokenizer=tokenizer)
    assert len(passages) == len(pairs)
    for pair, passage in zip(pairs, passages, strict=True):
        assert pair.prompt.startswith(tokenizer.decode(passage.prompt))
        kept = passage.response[:-1] if passage.is_ended else passage.response
        assert tokenizer.decode(kept).endswith(pair.answer)
        assert tokenizer.decode(passage.prompt + kept) == pair.prompt + pair.answer
        assert passage.is_ended == (pair.kind == "ended") == (passage.response[-1] == tokenizer.eos_token_id)


def by_hand(folder, passages, *, is_all: bool) -> float:
    """The mean negative log-likelihood of the labels when all passages are one block, in float64."""
    from transformers import AutoModelForCausalLM

    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens, counted = [], []
    for prompt, answer, kind in passages:
        head, tail = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
        tokens += [*head, *tail, tokenizer.eos_token_id]
        counted += [is_all] * len(head) + [True] * len(tail) + [kind == "ended"]
    with torch.inference_mode():
        log_probs = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    places = [place for place in range(1, len(tokens)) if counted[place]]
    return -float(np.mean([log_probs[place - 1, tokens[place]] for place in places])), len(tokens), len(places)


@pytest.mark.parametrize("loss_on", ["generated", "all"])
@pytest.mark.parametrize("kind", ["ended", "cut"])
def test_the_loss_is_the_cross_entropy_of_what_counts(kind, loss_on, student, tmp_path):
    # One passage in one block: the label after the text is the end token, and only where the teacher ended.
    passages = [("A quick brown", " fox jumps over it", kind)]
    expected, length, labels = by_hand(student.path, passages, is_all=loss_on == "all")
    written = pairs_as_artifact(tmp_path / "text", [Pair(kind=k, prompt=p, answer=a) for p, a, k in passages])
    used = context(tmp_path / "scratch", written=written)
    args = {"tokens": length, "sequence": length, "batch": 1, "autocast": False, "heldout_tokens": 0}
    distill(student, used, **args, loss_on=loss_on)
    assert used.report.notes["loss_first"] == pytest.approx(expected, rel=1e-4)
    # The very first token of a block has nothing before it, so it is a label that no position predicts.
    assert used.report.notes["labels"] == labels + (loss_on == "all")


def test_text_that_is_too_little_is_read_again_and_that_is_noted(student, tmp_path):
    pair = Pair(kind="ended", prompt="A quick brown ", answer="fox jumps over it")
    used = context(tmp_path / "scratch", written=pairs_as_artifact(tmp_path / "text", [pair]))
    length = len(tiny_tokenizer().encode(pair.prompt + pair.answer)) + 1
    distill(student, used, tokens=12 * length, sequence=2 * length, batch=2, heldout_tokens=0)
    assert used.report.notes["passes"] == 12


def test_a_killed_run_continues_to_the_same_bits(student, used):
    assert_continues(lambda: DistillSequence(**FAST, checkpoint_every=3), student, used, kills={4: 5, 7: 2})


def test_another_seed_reads_in_another_order(student, used, tmp_path):
    first = distill(student, used)
    assert distill(student, another(used, tmp_path / "s2" / "scratch")) == first
    assert distill(student, another(used, tmp_path / "s3" / "scratch", seed=1)) != first


def test_a_corpus_without_responses_is_refused(student, tmp_path):
    with pytest.raises(SpecError, match="no pairs"):
        distill(student, context(tmp_path / "scratch", written=a_corpus(tmp_path)))


def test_responses_without_a_token_are_no_text_to_learn_from(student, tmp_path):
    pair = Pair(kind="cut", prompt="All is prompt", answer="")
    with pytest.raises(SourceError, match="no train text"):
        distill(student, context(tmp_path / "s", written=pairs_as_artifact(tmp_path / "text", [pair])))


def test_the_teachers_text_is_asked_for_as_an_artifact_of_its_own():
    stage = DistillSequence(tokens=1900, prompt_tokens=10, max_tokens=30, temperature=0.0, sequence=32)
    (need,) = stage.needs
    assert (need.name, need.source) == ("written", REFERENCE)
    # Three quarters of a text are generated, and one text in twenty is held out: 1900 * 3/4 * 20/19 tokens.
    asked = {"tokens": 1500, "length": 30, "temperature": 0.0, "corpus": "docstrings:default", "prompt_tokens": 10}
    assert [(use.use, use.args) for use in need.stages] == [("capture.text", asked)]
    (need,) = DistillSequence(tokens=2048, teacher={"source": "hub:some/teacher"}, generate_tokens=7).needs
    assert (need.source, need.stages[0].args["tokens"]) == ("hub:some/teacher", 7)


def test_the_text_of_a_plan_is_what_the_stage_can_build():
    from harness.stages.capture.text import CaptureText

    (need,) = DistillSequence(tokens=2048, temperature=0.0).needs
    stage = CaptureText(**need.stages[0].args)
    assert stage.needs[0].source == "docstrings:default"
    assert math.isclose(stage.temperature, 0)


@pytest.mark.parametrize(
    "args",
    [
        {"generate_tokens": 0},
        {"prompt_tokens": 0},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"loss_on": "some"},
        {"teacher": "hub:some/teacher"},
        {"learning_rate": 0},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillSequence(**{**FAST, **args})
