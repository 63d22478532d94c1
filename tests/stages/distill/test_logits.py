"""Logit distillation on tiny models: it learns, it continues to the same bits after a kill, and it refuses nonsense."""

import math
from pathlib import Path

import pytest

from harness.errors import ModelError, SpecError
from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.distill.logits import DistillLogits
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
FAST = {"tokens": 512, "batch": 2, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 64}  # 8 steps


class Killed(Exception):
    """Stands for the process dying."""


def distill(student: Artifact, out: Path, used: StageContext, **args) -> bytes:
    out.mkdir(parents=True, exist_ok=True)
    DistillLogits(**{**FAST, **args}).apply(student, out, context=used)
    return (out / "model.safetensors").read_bytes()


def another(used: StageContext, scratch: Path, **changes) -> StageContext:
    from dataclasses import replace

    from harness.interfaces import BuildReport

    scratch.mkdir(parents=True, exist_ok=True)
    return replace(used, scratch=scratch, report=BuildReport(), **changes)


def test_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillLogits)


def test_the_student_comes_closer_to_its_teacher_on_text_it_has_not_seen(student, used, tmp_path):
    distill(student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert notes["loss_last"] < notes["loss_first"]
    assert (notes["steps"], used.report.tokens) == (8, 512)


def test_the_reported_divergence_is_that_of_the_two_models(student, teacher, corpus, used, tmp_path):
    from torch.distributions import Categorical, kl_divergence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents

    distill(student, tmp_path / "out", used, autocast=False)
    tokenizer = AutoTokenizer.from_pretrained(student.path)
    tokens = pack_blocks(
        read_documents(corpus, "heldout"), encode=tokenizer.encode, shape=(2, 32), separator=tokenizer.eos_token_id
    )
    for when, folder in (("before", student.path), ("after", tmp_path / "out")):
        models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (teacher.path, folder)]
        with torch.inference_mode():
            left, right = (Categorical(logits=model(torch.from_numpy(tokens)).logits.double()) for model in models)
        assert used.report.notes[f"heldout_kl_{when}"] == pytest.approx(
            float(kl_divergence(left, right).mean()), rel=1e-4
        )


def test_a_student_that_equals_its_teacher_has_nothing_to_lose(teacher, used, tmp_path):
    distill(teacher, tmp_path / "out", used, autocast=False)
    assert used.report.notes["heldout_kl_before"] == pytest.approx(0, abs=1e-6)
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_a_killed_run_continues_to_the_same_bits(killed_at, autocast, student, used, tmp_path):
    args = {"checkpoint_every": 3, "autocast": autocast}
    whole = distill(student, tmp_path / "whole", used, **args)
    steps: list[str] = []

    def kill(_: float | None, message: str) -> None:
        steps.append(message)
        if message.startswith(f"step {killed_at} "):
            raise Killed

    scratch = tmp_path / "second"
    with pytest.raises(Killed):
        distill(student, tmp_path / "resumed", another(used, scratch, progress=kill), **args)
    (scratch / "checkpoint.partial").write_bytes(b"cut short")
    again: list[str] = []
    last = another(used, scratch, progress=lambda _, message: again.append(message))
    assert distill(student, tmp_path / "resumed", last, **args) == whole
    assert len(again) == 8 - 3 * ((killed_at - 1) // 3)  # continued from the last multiple of three before the kill
    assert last.report.notes == used.report.notes


def test_dropout_too_is_drawn_as_if_nothing_had_happened(student, used, tmp_path):
    import json
    import shutil

    folder = tmp_path / "dropping"
    shutil.copytree(student.path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    dropping = artifact(folder, "hf")
    whole = distill(dropping, tmp_path / "whole", used, checkpoint_every=3)

    def kill(_: float | None, message: str) -> None:
        if message.startswith("step 5 "):
            raise Killed

    with pytest.raises(Killed):
        distill(dropping, tmp_path / "a", another(used, tmp_path / "s", progress=kill), checkpoint_every=3)
    torch.manual_seed(12345)
    assert distill(dropping, tmp_path / "a", another(used, tmp_path / "s"), checkpoint_every=3) == whole


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_text(student, used, tmp_path):
    first = distill(student, tmp_path / "a", used)
    assert distill(student, tmp_path / "b", another(used, tmp_path / "sb")) == first
    assert distill(student, tmp_path / "c", another(used, tmp_path / "sc", seed=1)) != first


def test_the_callers_random_state_is_left_alone(student, used, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    distill(student, tmp_path / "out", used)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_student_is_saved_in_its_stored_type_with_its_tokenizer(teacher, used, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "half", layers=1)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    distill(artifact(folder, "hf"), tmp_path / "out", used)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_progress_tells_loss_speed_and_time_left(student, used, tmp_path):
    seen: list[tuple[float | None, str]] = []
    watched = another(used, tmp_path / "s", progress=lambda fraction, message: seen.append((fraction, message)))
    distill(student, tmp_path / "out", watched, heldout_tokens=0)
    assert [fraction for fraction, _ in seen] == [pytest.approx((n + 1) / 8) for n in range(8)]
    assert all("loss" in message and "tokens/s" in message and "s left" in message for _, message in seen)
    assert "heldout_kl_after" not in watched.report.notes


def test_another_vocabulary_is_refused(used, tmp_path):
    stranger = artifact(tiny_llama(tmp_path / "model", vocab=370), "hf")
    with pytest.raises(SpecError, match="different vocabularies"):
        distill(stranger, tmp_path / "out", used)


def test_a_loss_that_is_no_number_is_an_error_and_saves_nothing(student, used, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "broken", layers=1)
    broken = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(broken.model.layers[0].mlp.down_proj.weight, 1e38)
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match="diverged"):
        distill(artifact(folder, "hf"), tmp_path / "out", used, heldout_tokens=0)
    assert not list((tmp_path / "out").iterdir())


def test_the_rate_rises_for_the_warm_up_and_falls_as_a_cosine():
    from harness.training.pace import Pace

    pace = Pace(steps=10, tokens=1, learning_rate=8.0, warmup=0.3, checkpoint_every=None)
    rates = [pace.rate(step) for step in range(10)]
    # Three of ten steps rise in quarters of the peak; the other seven fall along 8 * (1 + cos(pi k / 7)) / 2.
    expected = [2, 4, 6] + [4 * (1 + math.cos(math.pi * k / 7)) for k in range(7)]
    assert rates == pytest.approx(expected)


def captured(stage: DistillLogits, teacher: Artifact, corpus: Artifact, folder: Path) -> Artifact:
    """What the plan would build for the stage's need of a teacher: its stored predictions."""
    from harness.stages.capture.targets import CaptureTargets

    (use,) = stage.needs[0].stages
    assert use.use == "capture.targets"
    (folder / "targets").mkdir(parents=True)
    CaptureTargets(**use.args).apply(teacher, folder / "targets", context=context(folder / "s", corpus=corpus))
    return artifact(folder / "targets", "files")


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "skewed_reverse_kl"])
def test_stored_predictions_of_all_tokens_but_one_teach_as_the_teacher_does(
    divergence, student, teacher, corpus, used, tmp_path
):
    # One token alone in the tail: nothing is hidden, so only the order of float32 sums differs.
    from safetensors.torch import load

    args = {"autocast": False, "divergence": divergence, "temperature": 2.0}
    expected = load(distill(student, tmp_path / "full", used, **args))
    stage = DistillLogits(**FAST, **args, top_k=383)
    stored = context(tmp_path / "s2", teacher=captured(stage, teacher, corpus, tmp_path / "t"), corpus=corpus)
    found = load(distill(student, tmp_path / "kept", stored, **args, top_k=383))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-4, msg=name)
    assert stored.report.notes["loss_last"] == pytest.approx(used.report.notes["loss_last"], rel=1e-4)


def test_a_few_stored_tokens_and_the_tail_teach_too(student, teacher, corpus, tmp_path):
    stage = DistillLogits(**FAST, top_k=8)
    used = context(tmp_path / "s", teacher=captured(stage, teacher, corpus, tmp_path / "t"), corpus=corpus)
    distill(student, tmp_path / "out", used, top_k=8)
    assert used.report.notes["heldout_kl_after"] < used.report.notes["heldout_kl_before"]


def test_predictions_stored_for_other_tokens_are_refused(student, teacher, corpus, tmp_path):
    stage = DistillLogits(**FAST, top_k=8)
    stored = captured(stage, teacher, corpus, tmp_path / "t")
    used = another(context(tmp_path / "s", teacher=stored, corpus=corpus), tmp_path / "s2", seed=1)
    with pytest.raises(SpecError, match="other tokens"):
        distill(student, tmp_path / "out", used, top_k=8)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl"])
def test_every_divergence_brings_the_student_closer(divergence, student, used, tmp_path):
    distill(student, tmp_path / "out", used, divergence=divergence)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert notes["loss_last"] < notes["loss_first"]


def test_adapters_train_few_parameters_and_are_merged_into_a_plain_model(student, used, tmp_path):
    from transformers import AutoModelForCausalLM

    pytest.importorskip("peft")
    distill(student, tmp_path / "out", used, lora=2)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (student.path, tmp_path / "out"))
    shapes = {name: weight.shape for name, weight in after.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in before.state_dict().items()}
    # Rank 2 on a linear layer R x C is 2 (R + C) parameters; the head and the norms are left alone.
    layers = [m for name, m in before.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert used.report.notes["parameters_trained"] == sum(2 * sum(layer.weight.shape) for layer in layers)
    changed = {
        name for name, weight in after.state_dict().items() if not torch.equal(weight, before.state_dict()[name])
    }
    assert changed == {f"{name}.weight" for name, m in before.named_modules() if m in layers}
    assert used.report.notes["heldout_kl_after"] < used.report.notes["heldout_kl_before"]


def test_a_killed_run_with_adapters_continues_to_the_same_bits(student, used, tmp_path):
    pytest.importorskip("peft")
    whole = distill(student, tmp_path / "whole", used, lora=2, checkpoint_every=3)

    def kill(_: float | None, message: str) -> None:
        if message.startswith("step 5 "):
            raise Killed

    with pytest.raises(Killed):
        distill(student, tmp_path / "a", another(used, tmp_path / "s", progress=kill), lora=2, checkpoint_every=3)
    assert distill(student, tmp_path / "a", another(used, tmp_path / "s"), lora=2, checkpoint_every=3) == whole


def test_without_the_soft_loss_it_is_training_on_text_and_needs_no_teacher(student, corpus, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents

    args = {"kd_weight": 0, "ce_weight": 1.0}
    assert DistillLogits(**FAST, **args).needs == (Need(name="corpus", source="docstrings:default"),)
    used = context(tmp_path / "s", corpus=corpus)
    distill(student, tmp_path / "out", used, **args, autocast=False)
    notes = used.report.notes
    assert notes["loss_last"] < notes["loss_first"]
    tokenizer = AutoTokenizer.from_pretrained(student.path)
    tokens = torch.from_numpy(
        pack_blocks(
            read_documents(corpus, "train"), encode=tokenizer.encode, shape=(2, 32), separator=tokenizer.eos_token_id
        )
    )
    with torch.inference_mode():
        log_probs = AutoModelForCausalLM.from_pretrained(student.path)(tokens).logits.double().log_softmax(-1)
    surprise = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).sum()
    # The mean is over all 64 positions, though the last of each block has no label.
    assert notes["loss_first"] == pytest.approx(float(surprise) / 64, rel=1e-4)


def test_another_teacher_can_be_named():
    teacher, _ = DistillLogits(tokens=9999, teacher={"source": "hub:some/teacher", "revision": "abc"}).needs
    assert teacher == Need(name="teacher", source="hub:some/teacher", revision="abc")
    quantized = {"stages": [{"use": "quantize.rtn", "args": {"bits": 8}}]}
    teacher, _ = DistillLogits(tokens=9999, teacher=quantized, top_k=16).needs
    assert (teacher.source, [use.use for use in teacher.stages]) == ("reference", ["quantize.rtn", "capture.targets"])


def test_teacher_and_corpus_are_asked_for_by_name():
    needs = DistillLogits(tokens=9999).needs
    assert needs == (Need(name="teacher", source="reference"), Need(name="corpus", source="docstrings:default"))


@pytest.mark.parametrize(
    "args",
    [
        {"tokens": 63},
        {"learning_rate": 0},
        {"temperature": 0},
        {"kd_weight": 0},
        {"ce_weight": -1},
        {"warmup": 1},
        {"batch": 0},
        {"sequence": 1},
        {"checkpoint_every": 0},
        {"corpus": "nowhere"},
        {"heldout_tokens": -1},
        {"top_k": 0},
        {"divergence": "kl"},
        {"beta": 1.5},
        {"skew": 0},
        {"lora": 0},
        {"quantized": "melted"},
        {"teacher": "hub:some/teacher"},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillLogits(**{**FAST, **args})
