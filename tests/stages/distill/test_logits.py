"""Logit distillation on tiny models: it learns, it continues to the same bits after a kill, and it refuses nonsense."""

import math
from pathlib import Path

import pytest

from harness.errors import ModelError, SpecError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import write_documents
from harness.spec import Need
from harness.stages.distill.logits import DistillLogits
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

torch = pytest.importorskip("torch")
FAST = {"tokens": 512, "batch": 2, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 64}  # 8 steps


class Killed(Exception):
    """Stands for the process dying."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("teacher"), seed=0), "hf")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("student"), layers=1, seed=1), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    numbered = [f"{n}. {sentence}" for n in range(3) for sentence in TEXT.splitlines()]
    write_documents(folder, train=numbered, heldout=TEXT.upper().splitlines())
    return artifact(folder, "text")


@pytest.fixture
def used(tmp_path, teacher, corpus) -> StageContext:
    return context(tmp_path / "scratch", teacher=teacher, corpus=corpus)


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
    torch.nn.init.constant_(broken.model.layers[0].mlp.down_proj.weight, math.inf)
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match="diverged"):
        distill(artifact(folder, "hf"), tmp_path / "out", used, heldout_tokens=0)
    assert not list((tmp_path / "out").iterdir())


def test_the_rate_rises_for_the_warm_up_and_falls_as_a_cosine():
    from harness.stages.distill.trainer import Schedule

    schedule = Schedule(batch=1, learning_rate=8.0, warmup=0.3, checkpoint_every=None)
    rates = [schedule.rate(step, steps=10) for step in range(10)]
    # Three of ten steps rise in quarters of the peak; the other seven fall along 8 * (1 + cos(pi k / 7)) / 2.
    expected = [2, 4, 6] + [4 * (1 + math.cos(math.pi * k / 7)) for k in range(7)]
    assert rates == pytest.approx(expected)


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
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillLogits(**{**FAST, **args})
