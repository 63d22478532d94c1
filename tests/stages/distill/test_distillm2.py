"""Contrastive distillation on tiny models: its two halves, its skew, and that a kill changes nothing."""

import math
from dataclasses import replace

import pytest

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.distillm2 import DistillDistillm2
from harness.testing import check_plugin
from tests.building import context
from tests.stages.distill.classroom import a_text_by, assert_continues, run

torch = pytest.importorskip("torch")
from harness.stages.distill.contrast import curriculum_skew, likelihood  # noqa: E402

FAST = {
    "tokens": 512,  # 8 steps
    "batch": 2,
    "sequence": 32,
    "learning_rate": 3e-3,
    "heldout_tokens": 64,
    "prompt_tokens": 8,
    "max_tokens": 12,
    "checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher, corpus) -> Artifact:
    return a_text_by(teacher, corpus, tmp_path_factory.mktemp("text"), length=12, tokens=300)


@pytest.fixture
def used(tmp_path, teacher, corpus, written) -> StageContext:
    return context(tmp_path / "scratch", teacher=teacher, corpus=corpus, written=written)


def distill(student: Artifact, used: StageContext, **args) -> bytes:
    return run(DistillDistillm2(**{**FAST, **args}), student, used.scratch.parent / "out", used)


def test_contrastive_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillDistillm2)


@pytest.mark.parametrize("args", [{}, {"refresh": 2, "gradual_beta": True}, {"beta": 2.0, "curriculum": False}])
def test_the_student_comes_closer_to_its_teacher(args, student, used):
    distill(student, used, **args)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert notes["steps"] == 8


def test_what_is_written_and_what_is_read_are_both_counted(student, used):
    distill(student, used)
    notes = used.report.notes
    # 16 prompts of at most 8 tokens; what the student wrote is read once, and so is what the teacher wrote.
    assert 16 <= notes["tokens_generated"] <= 16 * 12
    assert notes["tokens_read"] > notes["tokens_generated"] + 16 * 8
    assert used.report.tokens == notes["tokens_read"] + notes["tokens_generated"]


def test_with_beta_0_the_student_writes_nothing(student, used):
    distill(student, used, beta=0.0)
    assert used.report.notes["tokens_generated"] == 0


def test_the_loss_is_both_skewed_divergences_at_the_responses(student, teacher, written, used):
    """One step, against every text alone, in float64 probabilities; each response counts alike."""
    from transformers import AutoModelForCausalLM

    from harness.stages.distill.distillm2 import _in_order
    from harness.stages.distill.written import read_passages
    from harness.training.sampling import Sampling, sample
    from tests.tiny import tiny_tokenizer

    args = {"tokens": 4 * 32, "batch": 4, "autocast": False, "heldout_tokens": 0, "beta": 0.75, "skew": 0.2}
    distill(student, used, **args)
    tokenizer = tiny_tokenizer()
    models = [AutoModelForCausalLM.from_pretrained(one.path, dtype=torch.float32) for one in (teacher, student)]
    passages = _in_order(read_passages(written, "train", tokenizer=tokenizer), 4, seed=0)
    prompts = [passage.prompt for passage in passages]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = sample(models[1], prompts, how=Sampling(12, 0.8, {tokenizer.eos_token_id}))

    def mean_kl(prompt, response, *, is_own: bool) -> float:
        with torch.inference_mode():
            logits = [model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] for model in models]
        p, q = (one.double().softmax(-1) for one in logits)
        left, right = (q, 0.8 * p + 0.2 * q) if is_own else (p, 0.2 * p + 0.8 * q)
        return float((left * (left / right).log()).sum(-1).mean())

    theirs = sum(mean_kl(one.prompt, one.response, is_own=False) for one in passages) / 4
    ours = sum(mean_kl(prompt, response, is_own=True) for prompt, response in zip(prompts, own, strict=True)) / 4
    assert used.report.notes["loss_first"] == pytest.approx(1.25 * theirs + 0.75 * ours, rel=1e-4)


def test_a_student_that_equals_its_teacher_has_nothing_to_lose(teacher, used):
    distill(teacher, used, autocast=False, tokens=64)
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-6)


def test_the_skew_falls_where_the_models_agree_more_than_on_average():
    # 1 - .9 * .5 / .5 = .1 at the average; 1 - .9 * .5 / .48 = .0625; below about .4545 it would be under .01.
    assert curriculum_skew(0.5 - 1e-5, mean_gap=0.5, highest=0.1) == pytest.approx(0.1)
    assert curriculum_skew(0.48 - 1e-5, mean_gap=0.5, highest=0.1) == pytest.approx(0.0625)
    assert curriculum_skew(0.4, mean_gap=0.5, highest=0.1) == 0.01
    assert curriculum_skew(0.9, mean_gap=0.5, highest=0.1) == 0.1
    # A student that is likelier than the author: nothing is agreed, so the highest.
    assert curriculum_skew(-0.3, mean_gap=0.5, highest=0.1) == 0.1


def test_a_likelihood_is_the_geometric_mean_of_a_responses_probabilities():
    probabilities = torch.tensor([[0.5, 0.5], [0.125, 0.875]])
    assert likelihood(probabilities.log(), torch.tensor([0, 0])) == pytest.approx(math.sqrt(0.5 * 0.125))


def test_the_curriculum_starts_after_the_warm_up(student, used, monkeypatch):
    from harness.stages.distill import contrast

    seen: list[float] = []
    skewed = contrast._skewed

    def watched(*args, **kwargs):
        seen.append(kwargs["skew"])
        return skewed(*args, **kwargs)

    monkeypatch.setattr(contrast, "_skewed", watched)
    distill(student, used, warmup=0.25, heldout_tokens=0)
    # Two of eight steps warm up: 2 steps * 2 halves * 2 responses.
    assert seen[:8] == [0.1] * 8
    assert any(skew < 0.1 for skew in seen[8:])
    assert all(0.01 <= skew <= 0.1 for skew in seen)


def test_beta_rises_by_a_half_in_the_first_half():
    stage = DistillDistillm2(**FAST, gradual_beta=True)
    assert [stage.beta_at(step) for step in range(8)] == [1, 1.125, 1.25, 1.375, 1.5, 1.5, 1.5, 1.5]
    assert [replace(stage, gradual_beta=False).beta_at(step) for step in (0, 7)] == [1, 1]


@pytest.mark.parametrize(("refresh", "kills"), [(None, {2: 8, 8: 2}), (2, {5: 5})])
def test_a_killed_run_continues_to_the_same_bits_and_the_same_counts(refresh, kills, student, used):
    # With refresh 2 the checkpoint after step 3 is in the middle of what steps 3 and 4 use.
    make = lambda: DistillDistillm2(**{**FAST, "heldout_tokens": 0}, refresh=refresh)  # noqa: E731
    assert_continues(make, student, used, kills=kills)


def test_the_teacher_its_text_and_a_corpus_are_asked_for():
    stage = DistillDistillm2(tokens=1900 * 256, max_tokens=100, temperature=0.7)
    # 1900 prompts with at most 100 tokens each, and one text in twenty is held out.
    assert [need.name for need in stage.needs] == ["teacher", "written", "corpus"]
    asked = {"tokens": 200_000, "length": 100, "temperature": 0.7, "corpus": "docstrings:default", "prompt_tokens": 32}
    assert stage.needs[1].stages[0].args == asked


@pytest.mark.parametrize(
    "args",
    [
        {"beta": 2.1},
        {"beta": 1.6, "gradual_beta": True},
        {"skew": 0.001},
        {"skew": 1},
        {"refresh": 0},
        {"generate_tokens": 0},
        {"prompt_tokens": 0},
        {"max_tokens": 25},
        {"temperature": -1},
        {"teacher": 3},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillDistillm2(**{**FAST, **args})
