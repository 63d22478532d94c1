"""Self-distillation from demonstrations on tiny models: what is compared with what, and how much each token counts."""

from dataclasses import replace

import pytest

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import Pair, read_pairs
from harness.spec import Need
from harness.stages.distill.self_recipe import deal, first_lines, solves, within
from harness.stages.distill.self_sdft import DistillSelfSdft
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import a_corpus, another, assert_continues, run
from tests.stages.distill.exercises import PAIRS, exercises
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")

FAST = {
    "tokens": 8 * 2 * 40,  # 8 steps
    "batch": 2,
    "sequence": 40,
    "learning_rate": 3e-3,
    "heldout_tokens": 64,
    "max_tokens": 8,
}


@pytest.fixture
def used(tmp_path) -> StageContext:
    return context(tmp_path / "scratch", corpus=exercises(tmp_path / "corpus"))


def distill(student: Artifact, used: StageContext, **args) -> bytes:
    return run(DistillSelfSdft(**{**FAST, **args}), student, used.scratch.parent / "out", used)


def test_it_is_a_proper_plugin():
    check_plugin("stages", DistillSelfSdft)


def first_step(student: Artifact, used: StageContext, *, pairs: int, max_tokens: int, temperature: float):
    """The model, tokenizer, prompts, demonstrations and samples of the first step, made anew."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.training.sampling import Sampling, sample

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    model = AutoModelForCausalLM.from_pretrained(student.path, dtype=torch.float32)
    dealt = deal(read_pairs(used.artifacts["corpus"], "train"), pairs, seed=0, fits=lambda pair: True).pairs
    ends = {t for t in range(len(tokenizer)) if "\n" in tokenizer.decode([t])} | {tokenizer.eos_token_id}
    prompts = [tokenizer.encode(pair.prompt) for pair in dealt]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        written = sample(model, prompts, how=Sampling(max_tokens, temperature, ends))
    return model, tokenizer, dealt, prompts, written


def probabilities(model, prompt: list[int], response: list[int], *, temperature: float = 1.0):
    """What the model foretells at every token of one response, read alone, in float64 (T, V)."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("clip", "skip"), [(None, 0), (2.0, 0), (1.1, 2)])
def test_the_first_loss_is_that_of_every_sample_read_alone(divergence, clip, skip, student, used):
    """Every response read alone after either prompt, in float64, so that no padding and no shift can hide."""
    args = {"tokens": 4 * 40, "batch": 4, "autocast": False, "heldout_tokens": 0, "temperature": 0.7, "beta": 0.3}
    distill(student, used, **args, divergence=divergence, is_clip=clip, skip_tokens=skip)
    model, tokenizer, pairs, prompts, written = first_step(student, used, pairs=4, max_tokens=8, temperature=0.7)
    total, count = 0.0, 0
    for pair, prompt, response in zip(pairs, prompts, written, strict=True):
        told = tokenizer.encode(f"{pair.prompt}{pair.answer}\n{pair.prompt}")
        p, q = probabilities(model, told, response), probabilities(model, prompt, response)
        drew = probabilities(model, prompt, response, temperature=0.7)
        for t, token in enumerate(response):
            middle = 0.3 * p[t] + 0.7 * q[t]
            forward, reverse = (p[t] * (p[t] / q[t]).log()).sum(), (q[t] * (q[t] / p[t]).log()).sum()
            jsd = 0.3 * (p[t] * (p[t] / middle).log()).sum() + 0.7 * (q[t] * (q[t] / middle).log()).sum()
            weight = 1.0 if clip is None else min(clip, float(q[t, token] / drew[t, token]))
            if t >= skip:
                total += weight * float({"forward_kl": forward, "reverse_kl": reverse, "jsd": jsd}[divergence])
                count += 1
    assert count > 4
    assert used.report.notes["loss_first"] == pytest.approx(total / count, rel=1e-4)
    assert used.report.notes["tokens_generated"] == sum(map(len, written))
    assert used.report.notes["tokens_read"] == sum(map(len, written)) + sum(map(len, prompts))


@pytest.mark.parametrize("autocast", [True, False])
def test_a_teacher_that_is_told_nothing_more_teaches_nothing(autocast, student, used):
    distill(student, used, template="{prompt}", autocast=autocast, tokens=2 * 40, learning_rate=1e-9)
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-6)


def test_the_student_comes_closer_to_what_it_says_with_the_demonstration(student, used):
    distill(student, used, tokens=40 * 2 * 40, heldout_tokens=0)
    assert used.report.notes["loss_last"] < 0.7 * used.report.notes["loss_first"]


def test_the_teacher_moves_by_its_rate_and_only_where_the_student_is_trained(student):
    from harness.stages.distill.recipe import Recipe
    from harness.stages.distill.self_teacher import SelfTeacher
    from harness.stages.distill.student import load_student

    def teacher(rate: float, tmp: StageContext) -> SelfTeacher:
        made = SelfTeacher.of(load_student(Recipe(tokens=9999), student, context=tmp), rate=rate)
        norm, head = made.student.model.model.norm.weight, made.student.model.lm_head.weight
        norm.data.fill_(8.0)
        head.requires_grad_(False)
        head.data.fill_(5.0)
        made.reader.model.model.norm.weight.data.fill_(4.0)
        made.reader.model.lm_head.weight.data.fill_(1.0)
        return made

    used = context(student.path.parent / "s")
    for rate, once, twice in ((0.0, 4, 4), (0.25, 5, 5.75), (1.0, 8, 8)):  # 4 + (8 - 4) / 4, 5 + (8 - 5) / 4
        made = teacher(rate, used)
        assert not any(parameter.requires_grad for parameter in made.reader.model.parameters())
        for expected in (once, twice):
            made.follow()
            assert made.reader.model.model.norm.weight.unique().tolist() == [expected]
        assert made.reader.model.lm_head.weight.unique().tolist() == [1]


def test_a_moving_teacher_is_the_average_of_the_student_at_the_start_of_every_step(student, used, tmp_path):
    from safetensors.torch import load_file

    args = {"teacher_ema": 0.5, "autocast": False, "heldout_tokens": 0, "checkpoint_every": 1, "warmup": 0.0}
    three = {**FAST, **args, "tokens": 3 * 80}
    seen: dict[int, dict] = {}

    def keep(_: float | None, message: str) -> None:
        # A checkpoint of a step is on disk when the next step tells its progress.
        file = used.scratch / "checkpoint.safetensors"
        if message.startswith("step") and file.exists():
            seen[int(message.split()[1]) - 1] = load_file(file)

    run(DistillSelfSdft(**three), student, tmp_path / "out", replace(used, progress=keep))
    start = load_file(student.path / "model.safetensors")
    name = "model.norm.weight"
    first = seen[1][f"weight.student.{name}"]
    # The teacher follows when a step begins: in the first it is the student it was, in the second half the first step.
    assert torch.equal(seen[1][f"weight.teacher.{name}"], start[name])
    expected = 0.5 * start[name] + 0.5 * first
    assert torch.allclose(seen[2][f"weight.teacher.{name}"], expected, atol=1e-7)
    assert not torch.equal(first, start[name])


def test_importance_weights_are_ratios_cut_at_the_clip():
    from harness.stages.distill.self_teacher import importance

    # p = (.8, .2); at temperature 1/2 q is proportional to p^2: (.64, .04) / .68. p/q = .85 and 3.4.
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log().requires_grad_()
    drawn = torch.tensor([0, 1])
    for clip, expected in ((2.0, [0.85, 2.0]), (10.0, [0.85, 3.4]), (0.5, [0.5, 0.5]), (None, [1.0, 1.0])):
        weights = importance(logits, drawn, temperature=0.5, clip=clip)
        assert weights.tolist() == pytest.approx(expected, rel=1e-5)
        assert not weights.requires_grad
    assert importance(logits, drawn, temperature=1.0, clip=2.0).tolist() == [1, 1]


def test_the_first_tokens_of_every_response_are_skipped():
    from harness.stages.distill.responses import Responses
    from harness.stages.distill.self_teacher import counted

    batch = Responses.lay_out([[1], [1, 2, 3]], [[4, 5, 6], [7]])
    assert counted(batch, skip=0).tolist() == [1, 1, 1, 1]
    assert counted(batch, skip=2).tolist() == [0, 0, 1, 0]


def test_answers_that_are_skipped_whole_change_nothing(student, used, monkeypatch):
    from harness.stages.distill.self_training import Writer

    monkeypatch.setattr(Writer, "write", lambda writer, prompts, recipe: [[5, 6]] * len(prompts))
    before = (student.path / "model.safetensors").read_bytes()
    assert distill(student, used, skip_tokens=2, heldout_tokens=0) == before
    assert used.report.notes["loss_first"] == used.report.notes["loss_last"] == 0


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_killed_run_continues_to_the_same_bits_with_the_same_teacher(ema, student, used):
    make = lambda: DistillSelfSdft(**FAST, teacher_ema=ema, checkpoint_every=3)  # noqa: E731
    assert_continues(make, student, used, kills={5: 5})


def test_the_share_solved_is_that_of_the_likeliest_answers(student, used, tmp_path):
    """Held-out answers that are what the untrained student says, but for a third of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    model = AutoModelForCausalLM.from_pretrained(student.path, dtype=torch.float32)
    pairs = []
    for number, pair in enumerate(PAIRS[24:36]):
        tokens = torch.tensor([tokenizer.encode(pair.prompt)])
        said: list[int] = []
        with torch.inference_mode():
            while len(said) < 6:
                said.append(int(model(torch.cat([tokens, torch.tensor([said]).long()], dim=1)).logits[0, -1].argmax()))
        text = tokenizer.decode(said).split("\n")[0].strip()
        pairs.append(pair.model_copy(update={"answer": text if number % 3 else "unheard of"}))
    corpus = exercises(tmp_path / "known", heldout=pairs)
    told = replace(used, artifacts={"corpus": corpus})
    distill(student, told, heldout_tokens=9999, tokens=80, max_tokens=6)
    assert told.report.notes["heldout_pairs"] == 12
    assert told.report.notes["heldout_solved_before"] == pytest.approx(8 / 12)
    assert 0 <= told.report.notes["heldout_solved_after"] <= 1


def test_an_answer_is_compared_line_by_line_without_white_space_around_it():
    assert solves(" 42 \nmore", "42")
    assert not solves("43\n42", "42")
    assert not solves("421", "42")
    assert solves("call: a\nanswer: 3\nuser:", "call: a\nanswer: 3")
    assert not solves("call: a\nanswer: 4", "call: a\nanswer: 3")
    assert solves("it is 42, I say", " 42", how="contains")
    assert first_lines("a\nb\nc", " x\ny\n") == "a\nb"


def test_pairs_come_all_once_before_any_comes_again():
    dealt = deal(PAIRS, 90, seed=3, fits=lambda pair: True)
    assert dealt.passed_over == 0
    assert len(dealt.pairs) == 90
    for start in (0, 36):
        assert sorted(p.prompt for p in dealt.pairs[start : start + 36]) == sorted(p.prompt for p in PAIRS)
    assert dealt.pairs[:36] != dealt.pairs[36:72]
    few = deal(PAIRS, 12, seed=3, fits=lambda pair: pair.prompt.startswith("1"))
    assert {pair.prompt[0] for pair in few.pairs} == {"1"}
    assert few.passed_over > 0
    assert within(PAIRS, 7, length=lambda pair: 3) == list(PAIRS[:2])


def test_a_corpus_without_pairs_is_refused(student, used, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(SpecError, match="no pairs of prompt and answer"):
        distill(student, replace(used, artifacts={"corpus": a_corpus(tmp_path / "plain")}))


def test_exercises_that_do_not_fit_are_refused(student, used, tmp_path):
    long = [Pair(kind="long", prompt="word " * 60, answer="x")]
    told = replace(used, artifacts={"corpus": exercises(tmp_path / "long", train=long)})
    with pytest.raises(SpecError, match="no pair of the corpus fits"):
        distill(student, told)
    with pytest.raises(SpecError, match="do not fit"):
        distill(student, used, sequence=600, tokens=1200)


def test_long_exercises_are_passed_over_and_counted(student, used, tmp_path):
    mixed = [*PAIRS[:3], Pair(kind="long", prompt="word " * 60, answer="x")]
    told = replace(used, artifacts={"corpus": exercises(tmp_path / "mixed", train=mixed)})
    distill(student, told, heldout_tokens=0)
    # 16 pairs from passes over 4 of which 3 fit: five whole passes give 15, the sixth one more.
    assert 5 <= told.report.notes["pairs_passed_over"] <= 6


def test_a_quantized_student_teaches_itself_and_stays_on_its_grid(used, tmp_path):
    from harness.stages.quantize.rtn import QuantizeRtn

    folder = tiny_llama(tmp_path / "m", layers=1)
    (tmp_path / "grid").mkdir()
    QuantizeRtn(bits=4, group=32).apply(
        artifact(folder, "hf"), tmp_path / "grid", context=another(used, tmp_path / "q")
    )
    run(DistillSelfSdft(**FAST, teacher_ema=0.5), artifact(tmp_path / "grid", "grid"), tmp_path / "out", used)
    assert used.report.nominal_bytes is not None
    assert used.report.notes["loss_first"] > 0


def test_adapters_teach_themselves_and_are_merged(student, used):
    pytest.importorskip("peft")
    before = (student.path / "model.safetensors").read_bytes()
    assert distill(student, used, lora=2, teacher_ema=0.1) != before


def test_only_the_corpus_is_asked_for():
    assert DistillSelfSdft(tokens=9999).needs == (Need(name="corpus", source="lab-text:qa"),)


@pytest.mark.parametrize(
    "args",
    [
        {"divergence": "kl"},
        {"beta": 1.5},
        {"skip_tokens": 8},
        {"skip_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": 40},
        {"temperature": -1},
        {"temperature": 0},
        {"is_clip": 0},
        {"teacher_ema": 1.5},
        {"template": "{demonstration}"},
        {"template": "{prompt} {answer}"},
        {"template": "{prompt!r}"},
        {"template": "{prompt.kind}"},
        {"template": "{prompt"},
        {"tokens": 79},
        {"corpus": "nothing"},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillSelfSdft(**{**FAST, **args})
