"""Distillation from several tiny teachers: mixtures, weights that follow merit, a gate that does not collapse."""

from dataclasses import replace

import pytest

from harness.errors import SpecError
from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.distill.multi_teacher import RECONSTRUCTED, DistillMultiTeacher
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import another, assert_continues, run
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")

FAST = {"tokens": 768, "batch": 3, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 96}  # 8 steps

TWO = {"teachers": {"a": "reference", "b": {"source": "lab:b"}}}


@pytest.fixture(scope="module")
def teacher_a(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("a"), seed=0), "hf")


@pytest.fixture(scope="module")
def teacher_b(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("b"), layers=1, seed=1), "hf")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("student"), layers=1, hidden=32, seed=2), "hf")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher_a, corpus) -> Artifact:
    """A teacher that has read the corpus, and so foretells it better than one that has not."""
    from harness.stages.distill.logits import DistillLogits

    folder = tmp_path_factory.mktemp("trained")
    used = context(folder / "scratch", corpus=corpus)
    run(DistillLogits(**FAST, kd_weight=0.0, ce_weight=1.0), teacher_a, folder / "out", used)
    return artifact(folder / "out", "hf")


@pytest.fixture
def used(tmp_path, teacher_a, teacher_b, corpus) -> StageContext:
    return context(tmp_path / "scratch", teacher_a=teacher_a, teacher_b=teacher_b, corpus=corpus)


def with_teachers(used: StageContext, **teachers: Artifact) -> StageContext:
    named = {f"teacher.{name}": each for name, each in teachers.items()}
    return replace(used, artifacts={**used.artifacts, **named})


def test_distillation_from_several_teachers_is_a_proper_plugin():
    check_plugin("stages", DistillMultiTeacher)


@pytest.mark.parametrize("weighting", ["uniform", "confidence", "dynamic"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_student_comes_closer_to_its_teachers_on_text_it_has_not_seen(
    weighting, divergence, student, used, tmp_path
):
    stage = DistillMultiTeacher(**FAST, **TWO, weighting=weighting, divergence=divergence, temperature=2.0)
    run(stage, student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert notes["loss_last"] < notes["loss_first"]
    assert notes["teacher_weight.a"] + notes["teacher_weight.b"] == pytest.approx(1)
    assert (notes["steps"], used.report.tokens) == (8, 768)
    assert bool(used.report.labels) == (weighting == "dynamic")


def test_only_the_dynamic_weighting_is_labelled_a_reconstruction(student, used, tmp_path):
    run(DistillMultiTeacher(**FAST, **TWO, weighting="dynamic"), student, tmp_path / "out", used)
    assert used.report.labels == [RECONSTRUCTED]
    assert "reconstruction" in RECONSTRUCTED
    assert "RECONSTRUCTION" in DistillMultiTeacher.__doc__


def test_two_equal_teachers_are_one_teacher(student, teacher_a, used, tmp_path):
    from harness.stages.distill.logits import DistillLogits

    args = {**FAST, "autocast": False, "temperature": 2.0, "ce_weight": 0.3}
    alone = another(used, tmp_path / "alone")
    run(
        DistillLogits(**args),
        student,
        tmp_path / "a",
        replace(alone, artifacts={**used.artifacts, "teacher": teacher_a}),
    )
    for weighting in ("uniform", "confidence", "dynamic"):
        twins = with_teachers(another(used, tmp_path / weighting), a=teacher_a, b=teacher_a)
        run(DistillMultiTeacher(**args, **TWO, weighting=weighting), student, tmp_path / weighting / "out", twins)
        for name in ("loss_first", "loss_last", "heldout_kl_before", "heldout_kl_after"):
            assert twins.report.notes[name] == pytest.approx(alone.report.notes[name], rel=1e-3), (weighting, name)
        # A gate has nothing to choose between: its loss is flat and it stays where it began.
        assert twins.report.notes["teacher_weight.a"] == pytest.approx(0.5, abs=1e-6)


def test_uniform_weights_give_the_mean_of_the_probabilities(student, teacher_a, teacher_b, corpus, used, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents

    run(DistillMultiTeacher(**FAST, **TWO, autocast=False), student, tmp_path / "out", used)
    tokenizer = AutoTokenizer.from_pretrained(student.path)
    blocks = pack_blocks(
        read_documents(corpus, "heldout"), encode=tokenizer.encode, shape=(3, 32), separator=tokenizer.eos_token_id
    )
    probabilities = []
    for one in (teacher_a, teacher_b, student):
        model = AutoModelForCausalLM.from_pretrained(one.path, dtype=torch.float32)
        with torch.inference_mode():
            probabilities.append(model(torch.from_numpy(blocks)).logits.double().softmax(-1))
    a, b, s = probabilities
    for name, p in {"": (a + b) / 2, ".a": a, ".b": b}.items():
        expected = float((p * (p / s).log()).sum(-1).mean())
        assert used.report.notes[f"heldout_kl_before{name}"] == pytest.approx(expected, rel=1e-4)
    assert used.report.notes["teacher_weight.a"] == pytest.approx(0.5)


def test_confidence_weights_are_the_teachers_shares_of_the_probability_of_the_text():
    from harness.stages.distill.committee import ask, by_confidence
    from harness.stages.distill.losses import NO_LABEL

    class Fixed:
        """Gives the same logits whatever it reads."""

        def __init__(self, *probabilities: float) -> None:
            self.row = torch.tensor(probabilities).log()

        def logits(self, tokens_BT):
            return self.row.expand(tokens_BT.numel(), -1)

    teachers = [Fixed(0.6, 0.3, 0.1), Fixed(0.2, 0.3, 0.5)]
    labels = torch.tensor([0, 1, 2, NO_LABEL])
    weights = by_confidence(ask(teachers, torch.zeros(1, 4), labels), None, labels)
    # 0.6 against 0.2, 0.3 against 0.3, 0.1 against 0.5, and nothing to go by at the end of the block.
    torch.testing.assert_close(weights, torch.tensor([[3 / 4, 1 / 2, 1 / 6, 1 / 2], [1 / 4, 1 / 2, 5 / 6, 1 / 2]]))


def test_the_gate_begins_with_equal_weights_and_sends_nothing_back_to_the_student():
    from types import SimpleNamespace

    from harness.stages.distill.committee import Answers, Gate, by_gate

    torch.manual_seed(0)
    gate = Gate(teachers=3, width=8, temperature=1.0)
    states = torch.randn(2, 4, 8, requires_grad=True)
    answers = Answers([], torch.log(torch.tensor([0.7, 0.2, 0.1])[:, None].expand(3, 8)))
    labels = torch.zeros(8, dtype=torch.long)
    weights = by_gate(gate, smallest=0.05)(answers, SimpleNamespace(hidden_states=[states]), labels)
    torch.testing.assert_close(weights, torch.full((3, 8), 1 / 3))
    assert states.grad is None
    assert gate.teachers_MG.grad.abs().sum() > 0


def test_the_gate_learns_which_teacher_knows_which_texts():
    # Texts of one kind point along the first axis of the student's state, of the other against it; the first teacher
    # gives .8 to every token of the one and .1 of the other, the second the reverse. A constant weight can do no better
    # than one half each; the gate must tell the two apart.
    from types import SimpleNamespace

    from harness.stages.distill.committee import Answers, Gate, by_gate

    torch.manual_seed(0)
    gate = Gate(teachers=2, width=8, temperature=1.0)
    weigh, optimizer = by_gate(gate, smallest=0.1), torch.optim.AdamW(gate.parameters(), lr=1e-2)
    states = torch.randn(4, 5, 8) * 0.1
    states[:2, :, 0] += 1
    states[2:, :, 0] -= 1
    known = torch.tensor([[0.8, 0.8, 0.1, 0.1], [0.1, 0.1, 0.8, 0.8]]).repeat_interleave(5, dim=1).log()
    for _ in range(200):
        weights = weigh(Answers([], known), SimpleNamespace(hidden_states=[states]), torch.zeros(20, dtype=torch.long))
        optimizer.step()
        optimizer.zero_grad()
    assert (weights[0, :10] > 0.9).all()
    assert (weights[1, 10:] > 0.9).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(20))
    assert ((weights == 0) | (weights >= 0.1)).all()


@pytest.mark.parametrize("weighting", ["confidence", "dynamic"])
def test_the_teacher_that_knows_the_text_counts_for_more(weighting, student, teacher_b, trained, used, tmp_path):
    twins = with_teachers(used, a=trained, b=teacher_b)
    # Eight steps are few for a gate; dividing by a small temperature makes them count for more.
    stage = DistillMultiTeacher(**FAST, **TWO, weighting=weighting, gate_temperature=0.1)
    run(stage, student, tmp_path / "out", twins)
    assert used.report.notes["teacher_weight.a"] > 0.6


def test_the_gate_does_not_prefer_the_teacher_that_equals_the_student(teacher_b, trained, used, tmp_path):
    # Nothing is easier to imitate than oneself; the text says otherwise.
    twins = with_teachers(used, a=trained, b=teacher_b)
    stage = DistillMultiTeacher(**FAST, **TWO, weighting="dynamic", gate_temperature=0.1)
    run(stage, teacher_b, tmp_path / "out", twins)
    assert used.report.notes["teacher_weight.a"] > 0.6


@pytest.mark.parametrize("weighting", ["uniform", "confidence", "dynamic"])
def test_a_killed_run_continues_to_the_same_bits_gate_and_tally_included(weighting, student, used):
    stage = DistillMultiTeacher(**FAST, **TWO, weighting=weighting, checkpoint_every=3)
    assert_continues(lambda: stage, student, used, kills={5: 5})


def test_the_gate_is_not_saved_with_the_student(student, used, tmp_path):
    from safetensors.torch import load_file

    run(DistillMultiTeacher(**FAST, **TWO, weighting="dynamic"), student, tmp_path / "out", used)
    before, after = (load_file(path / "model.safetensors") for path in (student.path, tmp_path / "out"))
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}


def test_teachers_are_asked_for_by_name_in_an_order_of_their_own():
    teachers = {"z": "reference", "a": {"source": "hub:a/b", "revision": "1"}}
    needs = DistillMultiTeacher(tokens=9999, teachers=teachers).needs
    assert needs == (
        Need(name="teacher.a", source="hub:a/b", revision="1"),
        Need(name="teacher.z", source="reference"),
        Need(name="corpus", source="docstrings:default"),
    )
    assert DistillMultiTeacher(tokens=9999, teachers=dict(reversed(teachers.items()))).needs == needs


def test_a_teacher_with_another_vocabulary_is_refused(student, used, tmp_path):
    stranger = artifact(tiny_llama(tmp_path / "model", vocab=370), "hf")
    with pytest.raises(SpecError, match="different vocabularies"):
        run(DistillMultiTeacher(**FAST, **TWO), student, tmp_path / "out", with_teachers(used, b=stranger))


@pytest.mark.parametrize(
    "args",
    [
        {"teachers": {"a": "reference"}},
        {"teachers": ["reference", "reference"]},
        {"teachers": {"a": "reference", "b": "nobody"}},
        {"teachers": {"a": "reference", "b": {"revision": "1"}}},
        {"weighting": "best"},
        {"gate_temperature": 0},
        {"smallest_weight": 0.5},
        {"smallest_weight": -0.1},
        {"temperature": 0},
        {"kd_weight": 0},
        {"ce_weight": -1},
        {"divergence": "l2"},
        {"beta": 2},
        {"skew": 0},
        {"learning_rate": 0},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args)).removesuffix("s")):
        DistillMultiTeacher(**{**FAST, **TWO, **args})
