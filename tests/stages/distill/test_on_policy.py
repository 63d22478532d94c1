"""On-policy distillation on tiny models: what it learns from, what it counts, and that a kill changes nothing."""

import math

import pytest

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.distill.on_policy import DistillOnPolicy
from harness.testing import check_plugin
from tests.stages.distill.classroom import another, assert_continues, run

torch = pytest.importorskip("torch")
FAST = {
    "tokens": 512,  # 8 steps
    "batch": 2,
    "sequence": 32,
    "learning_rate": 3e-3,
    "heldout_tokens": 64,
    "prompt_tokens": 8,
    "max_tokens": 12,
}


def distill(student: Artifact, used: StageContext, **args) -> bytes:
    return run(DistillOnPolicy(**{**FAST, **args}), student, used.scratch.parent / "out", used)


def test_on_policy_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillOnPolicy)


@pytest.mark.parametrize(("lmbda", "beta"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_the_student_comes_closer_to_its_teacher(lmbda, beta, student, used):
    distill(student, used, lmbda=lmbda, beta=beta, tokens=1024)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]


def test_without_own_samples_and_with_forward_kl_it_is_logit_distillation(student, used, tmp_path):
    from harness.stages.distill.logits import DistillLogits

    shared = {name: value for name, value in FAST.items() if name not in ("prompt_tokens", "max_tokens")}
    expected = run(DistillLogits(**shared), student, tmp_path / "logits", another(used, tmp_path / "s"))
    assert distill(student, used, lmbda=0, beta=0) == expected
    assert used.report.notes["steps_on_policy"] == used.report.notes["tokens_generated"] == 0
    assert used.report.tokens == used.report.notes["tokens_read"] == 512


def test_what_is_written_and_what_is_read_are_both_counted(student, used):
    distill(student, used, lmbda=1)
    notes = used.report.notes
    # 8 steps of 2 prompts: what is read is 8 tokens of each prompt and what was written after it, at most 12 tokens.
    assert notes["steps_on_policy"] == 8
    assert 16 <= notes["tokens_generated"] <= 16 * 12
    assert notes["tokens_read"] == 16 * 8 + notes["tokens_generated"]
    assert used.report.tokens == notes["tokens_read"] + notes["tokens_generated"]


def test_own_samples_come_about_as_often_as_asked(student, used):
    distill(student, used, lmbda=0.25, tokens=999, heldout_tokens=0, max_tokens=1, sequence=9, batch=1)
    steps = used.report.notes["steps"]
    # Binomial: five standard deviations around the mean.
    assert abs(used.report.notes["steps_on_policy"] - steps / 4) < 5 * math.sqrt(steps * 3 / 16)


def test_the_loss_on_own_samples_is_the_divergence_at_the_sampled_positions(student, teacher, corpus, used):
    """One step, against both models run on every sample alone, without padding, in float64 probabilities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents
    from harness.training.sampling import Sampling, sample

    args = {"lmbda": 1, "beta": 0.3, "tokens": 4 * 32, "batch": 4, "autocast": False, "heldout_tokens": 0}
    distill(student, used, **args)
    tokenizer = AutoTokenizer.from_pretrained(student.path)
    models = [AutoModelForCausalLM.from_pretrained(one.path, dtype=torch.float32) for one in (teacher, student)]
    blocks = pack_blocks(
        read_documents(corpus, "train"), encode=tokenizer.encode, shape=(4, 32), separator=tokenizer.eos_token_id
    )
    prompts = [block[:8] for block in blocks.tolist()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.rand(())  # whether the step is on-policy is drawn first
        written = sample(models[1], prompts, how=Sampling(12, 0.9, {tokenizer.eos_token_id}))
    losses = []
    for prompt, response in zip(prompts, written, strict=True):
        tokens = torch.tensor([prompt + response])
        with torch.inference_mode():
            p, q = (model(tokens).logits[0, 7:-1].double().softmax(-1) for model in models)
        middle = 0.3 * p + 0.7 * q
        losses += (0.3 * (p * (p / middle).log()).sum(-1) + 0.7 * (q * (q / middle).log()).sum(-1)).tolist()
    assert len(losses) == used.report.notes["tokens_generated"]
    assert used.report.notes["loss_first"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_student_that_equals_its_teacher_has_nothing_to_lose(teacher, used):
    distill(teacher, used, lmbda=1, autocast=False, tokens=64)
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-6)


def test_a_killed_run_continues_to_the_same_bits_and_the_same_counts(student, used):
    make = lambda: DistillOnPolicy(**FAST, lmbda=0.5, checkpoint_every=3)  # noqa: E731
    assert_continues(make, student, used, kills={2: 8, 5: 5})
    assert 0 < used.report.notes["steps_on_policy"] < 8


def test_adapters_sample_and_learn_too_and_are_merged(student, used, tmp_path):
    from transformers import AutoModelForCausalLM

    pytest.importorskip("peft")
    distill(student, used, lmbda=1, lora=2, tokens=256)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert used.report.notes["parameters_trained"] < 0.3 * sum(p.numel() for p in loaded.parameters())
    settings = [(folder / "generation_config.json").read_bytes() for folder in (student.path, tmp_path / "out")]
    assert settings[0] == settings[1]


def test_teacher_and_corpus_are_asked_for_by_name():
    needs = DistillOnPolicy(tokens=9999, teacher={"source": "hub:some/teacher"}).needs
    assert needs == (Need(name="teacher", source="hub:some/teacher"), Need(name="corpus", source="docstrings:default"))


def test_a_sample_longer_than_the_model_can_attend_to_is_refused(student, used):
    with pytest.raises(SpecError, match="do not fit"):
        distill(student, used, sequence=600, tokens=600, batch=1, max_tokens=505, heldout_tokens=0)


@pytest.mark.parametrize(
    "args",
    [
        {"lmbda": 1.1},
        {"beta": -0.1},
        {"prompt_tokens": 0},
        {"max_tokens": 0},
        {"max_tokens": 25},
        {"temperature": -1},
        {"teacher": "hub:some/teacher"},
        {"tokens": 63},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillOnPolicy(**{**FAST, **args})
