"""Self-distillation from rewards on tiny models: who is told what, what is masked, and what is minimized."""

from dataclasses import replace

import pytest

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, read_pairs
from harness.spec import Need
from harness.stages.distill.self_recipe import deal
from harness.stages.distill.self_sdpo import DistillSelfSdpo
from harness.testing import check_plugin
from tests.building import context
from tests.stages.distill.classroom import a_corpus, assert_continues, run
from tests.stages.distill.exercises import PAIRS, exercises

torch = pytest.importorskip("torch")

FAST = {
    "tokens": 8 * 8 * 48,  # 8 steps
    "batch": 8,
    "rollouts": 4,
    "sequence": 48,
    "learning_rate": 3e-3,
    "heldout_tokens": 64,
    "max_tokens": 4,
    "reward": "contains",
    "top_k": 20,
}
SUM = Pair(kind="sum", prompt="4+3=", answer="7")


@pytest.fixture(scope="module")
def solvable(tmp_path_factory) -> Artifact:
    """Exercises that a random model solves now and then, since the answer is a frequent letter of its tokens."""
    pairs = [pair.model_copy(update={"answer": letter}) for pair, letter in zip(PAIRS, "entsra" * 6, strict=True)]
    return exercises(tmp_path_factory.mktemp("solvable"), train=pairs[:24], heldout=pairs[24:])


@pytest.fixture
def used(tmp_path, solvable) -> StageContext:
    return context(tmp_path / "scratch", corpus=solvable)


def distill(student: Artifact, used: StageContext, **args) -> bytes:
    return run(DistillSelfSdpo(**{**FAST, **args}), student, used.scratch.parent / "out", used)


def told(responses: list[str], pair: Pair = SUM, **args) -> list[str | None]:
    return list(DistillSelfSdpo(**{**FAST, "reward": "exact", **args})._told(pair, responses))


def test_it_is_a_proper_plugin():
    check_plugin("stages", DistillSelfSdpo)


def test_the_teacher_is_shown_the_first_other_attempt_that_was_right():
    right, again = "4+3= 7\n4+3=", "4+3=7\n4+3="
    # Of two that are right the first is shown to all others and the second to the first: nobody sees its own.
    assert told(["8\n", " 7\nand", "7\n", "77\n"]) == [right, again, right, right]


def test_an_attempt_without_another_that_is_right_is_masked():
    assert told(["8", "77", "", "1"]) == [None] * 4
    assert told(["8", "7", "", "1"]) == ["4+3=7\n4+3=", None, "4+3=7\n4+3=", "4+3=7\n4+3="]


def test_a_verdict_tells_a_wrong_attempt_that_it_was_wrong_and_a_right_one_nothing():
    assert told(["8\n", "7\n"], feedback="verdict") == ["4+3=7\nWrong: 4+3=8\n4+3=", None]
    assert told(["8\n", "9\n"], feedback="verdict") == ["Wrong: 4+3=8\n4+3=", "Wrong: 4+3=9\n4+3="]


def test_an_answer_found_anywhere_is_shown_whole():
    assert told(["8", "so\nit is 7"], reward="contains") == ["4+3=so\nit is 7\n4+3=", None]


def test_of_an_answer_in_lines_as_many_are_shown():
    pair = Pair(kind="call", prompt="u\n", answer="a\nb")
    assert told(["x", "a\nb\nc"], pair) == ["u\na\nb\nu\n", None]


def expected_first_loss(student: Artifact, used: StageContext, away, *, temperature: float, clip: float) -> float:
    """The loss of the first step from every usable attempt read alone, and how many were usable."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.training.sampling import Sampling, sample

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    model = AutoModelForCausalLM.from_pretrained(student.path, dtype=torch.float32)
    pairs = deal(read_pairs(used.artifacts["corpus"], "train"), 6, seed=0, fits=lambda pair: True).pairs
    ends = {t for t in range(len(tokenizer)) if "\n" in tokenizer.decode([t])} | {tokenizer.eos_token_id}
    prompts = [tokenizer.encode(pair.prompt) for pair in pairs for _ in range(8)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        written = sample(model, prompts, how=Sampling(4, temperature, ends))

    def logits(prompt: list[int], response: list[int]):
        with torch.inference_mode():
            return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()

    total, count, usable = 0.0, 0, 0
    for number, pair in enumerate(pairs):
        attempts = written[8 * number : 8 * number + 8]
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in attempts]
        for at, tokens in enumerate(attempts):
            others = [text for other, text in enumerate(texts) if other != at and pair.answer in text]
            if not others:
                continue
            usable += 1
            shown = others[0].rstrip("\n")
            prompt = tokenizer.encode(pair.prompt)
            ours = logits(prompt, tokens)
            theirs = logits(tokenizer.encode(f"{pair.prompt}{shown}\n{pair.prompt}"), tokens)
            for t, token in enumerate(tokens):
                p, drew = ours[t].softmax(-1), (ours[t] / temperature).softmax(-1)
                total += min(clip, float(p[token] / drew[token])) * away(theirs[t], ours[t], token)
                count += 1
    assert 4 < usable < len(written)
    assert used.report.notes["samples_usable"] == usable
    return total / count


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_first_loss_is_the_divergence_over_the_students_likeliest_and_the_tail(alpha, student, used):
    """TRL's loss in float64 as the oracle, on every attempt alone."""
    loss_utils = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    args = {"tokens": 48 * 48, "batch": 48, "rollouts": 8, "autocast": False, "heldout_tokens": 0}
    distill(student, used, **args, alpha=alpha, temperature=0.8, is_clip=1.5)

    def away(theirs, ours, _) -> float:
        return loss_utils.compute_topk_self_distillation_loss(
            ours[None], theirs[None], distillation_topk=20, distillation_alpha=alpha, distillation_add_tail=True
        ).item()

    expected = expected_first_loss(student, used, away, temperature=0.8, clip=1.5)
    assert used.report.notes["loss_first"] == pytest.approx(expected, rel=1e-3)


def test_the_first_loss_on_sampled_tokens_is_the_difference_of_log_probabilities_times_ours(student, used):
    args = {"tokens": 48 * 48, "batch": 48, "rollouts": 8, "autocast": False, "heldout_tokens": 0}
    distill(student, used, **args, mode="sampled_token", alpha=1, temperature=0.8, is_clip=1.5)

    def away(theirs, ours, token) -> float:
        log_p, log_q = ours.log_softmax(-1)[token], theirs.log_softmax(-1)[token]
        return float((log_p - log_q) * log_p)

    expected = expected_first_loss(student, used, away, temperature=0.8, clip=1.5)
    assert used.report.notes["loss_first"] == pytest.approx(expected, rel=1e-3)


def test_the_mean_gradient_of_sampled_tokens_is_that_of_reverse_kl():
    from harness.stages.distill.losses import kl, log_probabilities

    generator = torch.Generator().manual_seed(0)
    theirs, ours = (torch.randn(1, 6, generator=generator) for _ in range(2))
    stage = DistillSelfSdpo(**{**FAST, "mode": "sampled_token", "alpha": 1})
    whole = ours.clone().requires_grad_()
    kl(log_probabilities(whole), log_probabilities(theirs)).sum().backward()
    mean = torch.zeros_like(ours)
    for token, p in enumerate(ours.softmax(-1)[0]):
        piece = ours.clone().requires_grad_()
        stage._away(theirs, piece, torch.tensor([token])).sum().backward()
        mean += p * piece.grad
    assert torch.allclose(mean, whole.grad, atol=1e-6)


def test_a_run_that_solves_nothing_changes_nothing(student, used, tmp_path):
    hard = exercises(tmp_path / "hard", train=[Pair(kind="x", prompt="1+1=", answer="unheard of")] * 3)
    lost = replace(used, artifacts={"corpus": hard})
    assert distill(student, lost) == (student.path / "model.safetensors").read_bytes()
    notes = lost.report.notes
    assert notes["samples_solved"] == notes["samples_usable"] == notes["tokens_read"] == notes["loss_last"] == 0
    assert notes["usable_share_by_step"] == [0.0] * 8
    assert lost.report.tokens == notes["tokens_generated"] > 0


def test_a_verdict_makes_every_failure_usable(student, used, tmp_path):
    hard = exercises(tmp_path / "hard", train=[Pair(kind="x", prompt="1+1=", answer="unheard of")] * 3)
    judged = replace(used, artifacts={"corpus": hard})
    distill(student, judged, feedback="verdict")
    assert judged.report.notes["usable_share_by_step"] == [1.0] * 8
    assert judged.report.notes["samples_usable"] == judged.report.notes["samples"] == 64


def test_an_attempt_whose_teacher_would_read_too_much_is_masked(student, used, tmp_path):
    # Prompt and attempt fit into 48 tokens; the prompt twice with an attempt does not.
    long = exercises(tmp_path / "long", train=[Pair(kind="x", prompt="0123456789" * 3 + "=", answer="unheard of")])
    told_much = replace(used, artifacts={"corpus": long})
    distill(student, told_much, feedback="verdict")
    assert told_much.report.notes["samples_usable"] == 0
    assert told_much.report.notes["tokens_generated"] > 0


def test_usable_prompts_are_counted_by_step(student, used):
    distill(student, used)
    notes = used.report.notes
    assert len(notes["usable_share_by_step"]) == 8
    assert {2 * share for share in notes["usable_share_by_step"]} <= {0, 1, 2}
    assert 0 < sum(notes["usable_share_by_step"]) < 8
    assert 2 * sum(notes["usable_share_by_step"]) == notes["prompts_usable"]
    assert notes["prompts_usable"] <= notes["samples_usable"] <= notes["samples"] == 64
    assert notes["heldout_pairs"] > 0
    assert 0 <= notes["heldout_solved_before"] <= 1


def test_a_teacher_that_is_told_nothing_more_teaches_nothing(student, used):
    distill(student, used, template="{prompt}", tokens=2 * 8 * 48, learning_rate=1e-9, heldout_tokens=0)
    assert used.report.notes["samples_usable"] > 0
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mode", ["top_k", "sampled_token"])
def test_a_killed_run_continues_to_the_same_bits_with_the_same_teacher(mode, student, used):
    args = {**FAST, "mode": mode, "alpha": 1.0, "teacher_ema": 0.2, "checkpoint_every": 3}
    assert_continues(lambda: DistillSelfSdpo(**args), student, used, kills={5: 5})
    assert used.report.notes["samples_usable"] > 0


def test_a_corpus_without_answers_gives_no_reward_and_is_refused(student, used, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(SpecError, match="no pairs of prompt and answer"):
        distill(student, replace(used, artifacts={"corpus": a_corpus(tmp_path / "plain")}))


def test_as_many_tokens_as_the_vocabulary_has_are_refused(student, used):
    with pytest.raises(SpecError, match="top_k"):
        distill(student, used, top_k=384)


def test_only_the_corpus_is_asked_for():
    assert DistillSelfSdpo(tokens=9999).needs == (Need(name="corpus", source="lab-text:qa"),)


@pytest.mark.parametrize(
    "args",
    [
        {"rollouts": 0},
        {"rollouts": 3},
        {"rollouts": 1},
        {"reward": "near"},
        {"feedback": "praise"},
        {"mode": "all"},
        {"alpha": 1.5},
        {"alpha": 0.5, "mode": "sampled_token"},
        {"top_k": 0},
        {"max_tokens": 48},
        {"temperature": 0},
        {"is_clip": -1},
        {"teacher_ema": -0.1},
        {"template": "{demonstration}"},
        {"template": "{prompt}{solution}"},
        {"tokens": 8 * 48 - 1},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillSelfSdpo(**{**FAST, **args})
