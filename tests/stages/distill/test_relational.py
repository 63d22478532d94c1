"""Relational distillation on tiny models: the student takes over the geometry of the teacher's texts."""

import math
import random
from dataclasses import replace

import pytest

from harness.interfaces import Artifact
from harness.sources.corpus import write_documents
from harness.spec import Need
from harness.stages.distill.relational import DistillRelational
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.distill.classroom import assert_continues, run
from tests.tiny import TEXT, tiny_llama

torch = pytest.importorskip("torch")

FAST = {"tokens": 768, "batch": 3, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 96}  # 8 steps

ALONE = {**FAST, "batch": 4, "tokens": 1024, "heldout_tokens": 128, "kd_weight": 0.0, "autocast": False}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Artifact:
    """Another width and depth than the teacher's."""
    return artifact(tiny_llama(tmp_path_factory.mktemp("student"), layers=1, hidden=32, seed=1), "hf")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory) -> Artifact:
    """Enough text for a geometry to be learned: words of the sentences in an order of their own in each document."""
    folder, rng = tmp_path_factory.mktemp("shuffled"), random.Random(0)
    documents = [" ".join(rng.sample(TEXT.split(), 30)) for _ in range(400)]
    write_documents(folder, train=documents[:350], heldout=documents[350:])
    return artifact(folder, "text")


def test_relational_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillRelational)


def test_the_geometry_of_unseen_texts_comes_closer_to_the_teachers(student, used, shuffled, tmp_path):
    pace = {"tokens": 16 * 32 * 40, "batch": 16, "learning_rate": 5e-3, "heldout_tokens": 16 * 32 * 2}
    used = replace(used, artifacts={**used.artifacts, "corpus": shuffled})
    run(DistillRelational(**{**ALONE, **pace}), student, tmp_path / "out", used)
    notes = used.report.notes
    for part in ("distance", "angle"):
        assert notes[f"heldout_{part}_after"] < 0.8 * notes[f"heldout_{part}_before"]
    assert notes["loss_last"] < notes["loss_first"]
    assert [notes[f"{part}_weight"] for part in ("distance", "angle", "kd", "ce")] == [25, 50, 0, 0]


def test_with_logits_the_student_also_comes_closer_in_what_it_says(student, used, tmp_path):
    stage = DistillRelational(**FAST, distance_weight=0, angle_weight=1, ce_weight=0.1)
    run(stage, student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert "heldout_distance_before" not in notes


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(teacher, used, tmp_path):
    run(DistillRelational(**ALONE), teacher, tmp_path / "out", used)
    for part in ("distance", "angle"):
        assert used.report.notes[f"heldout_{part}_before"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_reported_distance_is_that_of_pooled_last_states(pool, student, teacher, corpus, used, tmp_path):
    import itertools

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    blocks = pack_blocks(
        read_documents(corpus, "heldout"), encode=tokenizer.encode, shape=(4, 32), separator=tokenizer.eos_token_id
    )
    pairs = list(itertools.combinations(range(4), 2))
    relative = []
    for one in (teacher, student):
        model = AutoModelForCausalLM.from_pretrained(one.path, dtype=torch.float32)
        with torch.inference_mode():
            states = model.model(torch.from_numpy(blocks)).last_hidden_state.double().numpy()
        x = [block.mean(axis=0) if pool == "mean" else block[-1] for block in states]
        distances = [math.dist(x[i], x[j]) for i, j in pairs]
        relative.append([d / (sum(distances) / 6) for d in distances])
    gaps = [abs(a - b) for a, b in zip(*relative, strict=True)]
    expected = sum(0.5 * gap**2 if gap < 1 else gap - 0.5 for gap in gaps) / 6
    run(DistillRelational(**ALONE, pool=pool), student, tmp_path / "out", used)
    assert used.report.notes["heldout_distance_before"] == pytest.approx(expected, rel=1e-4)


def test_a_killed_run_continues_to_the_same_bits(student, used):
    stage = DistillRelational(**FAST, checkpoint_every=3)
    assert_continues(lambda: stage, student, used, kills={5: 5})


def test_teacher_and_corpus_are_asked_for_by_name():
    needs = DistillRelational(tokens=9999).needs
    assert needs == (Need(name="teacher", source="reference"), Need(name="corpus", source="docstrings:default"))


@pytest.mark.parametrize(
    "args",
    [
        {"batch": 2},
        {"distance_weight": 0, "angle_weight": 0},
        {"distance_weight": -1},
        {"angle_weight": -1},
        {"kd_weight": -1},
        {"ce_weight": -1},
        {"pool": "max"},
        {"teacher": "nobody"},
        {"learning_rate": 0},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillRelational(**{**FAST, **args})
