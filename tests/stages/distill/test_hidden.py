"""Distillation of hidden states, attention and relations on tiny models, against values worked out by hand."""

import json
import math
from pathlib import Path

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact
from harness.spec import Need
from harness.stages.distill.hidden import DistillHidden, uniform_map
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.distill.classroom import another, assert_continues, run
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

FAST = {"tokens": 768, "batch": 3, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 96}  # 8 steps
# Only what the test is about: no logits.
ALONE = {**FAST, "kd_weight": 0.0, "hidden_weight": 0.0, "autocast": False}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("teacher"), layers=4, seed=0), "hf")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("student"), layers=2, seed=1), "hf")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Artifact:
    """Half as wide as the teacher and with half its heads."""
    return artifact(tiny_llama(tmp_path_factory.mktemp("narrow"), layers=2, hidden=32, seed=2), "hf")


def test_hidden_distillation_is_a_proper_plugin():
    check_plugin("stages", DistillHidden)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ({"hidden_weight": 1.0}, "hidden"),
        ({"embedding_weight": 1.0}, "embedding"),
        ({"attention_weight": 1.0}, "attention"),
        ({"attention_weight": 1.0, "attention_form": "probabilities"}, "attention"),
        ({"relations": True}, "relation"),
        ({"relations": "minilm2"}, "relation"),
        ({"relations": "minilm2", "relation_heads": 4, "relation_layer": 3}, "relation"),
    ],
)
def test_every_part_alone_brings_the_student_closer_on_text_it_has_not_seen(args, part, student, used, tmp_path):
    run(DistillHidden(**{**ALONE, **args}), student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes[f"heldout_{part}_after"] < notes[f"heldout_{part}_before"]
    assert notes["loss_last"] < notes["loss_first"]
    assert notes[f"{part}_weight"] == 1
    assert sum(notes[f"{name}_weight"] for name in ("hidden", "embedding", "attention", "relation", "kd", "ce")) == 1


def test_with_logits_too_the_student_comes_closer_in_what_it_says(student, used, tmp_path):
    stage = DistillHidden(**FAST, attention_weight=0.5, relations="minilm", ce_weight=0.1)
    run(stage, student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]
    assert [notes[f"{part}_weight"] for part in ("hidden", "attention", "relation", "kd", "ce")] == [1, 0.5, 1, 1, 0.1]
    assert (notes["steps"], used.report.tokens) == (8, 768)


def test_a_narrower_student_learns_through_a_projection_that_is_thrown_away(narrow, used, tmp_path):
    from safetensors import safe_open

    stage = DistillHidden(**FAST, embedding_weight=1.0, relations="minilm2")
    run(stage, narrow, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_hidden_after"] < notes["heldout_hidden_before"]
    names = []
    for folder in (narrow.path, tmp_path / "out"):
        with safe_open(folder / "model.safetensors", "np") as file:
            names.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert names[0] == names[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 32


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(teacher, used, tmp_path):
    args = {"hidden_weight": 1.0, "embedding_weight": 1.0, "attention_weight": 1.0, "relations": "minilm"}
    run(DistillHidden(**{**FAST, "autocast": False, **args}), teacher, tmp_path / "out", used)
    for part in ("kl", "hidden", "embedding", "attention", "relation"):
        assert used.report.notes[f"heldout_{part}_before"] == pytest.approx(0, abs=1e-6)
    assert used.report.notes["loss_first"] == pytest.approx(0, abs=1e-5)


def read(folder: Path, tokens, layer: int):
    """States, attention and projections of one layer as the model itself computes them, with no code of ours."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        seen = model(tokens, output_hidden_states=True, output_attentions=True)
        block = model.model.layers[layer - 1]
        normed = block.input_layernorm(seen.hidden_states[layer - 1])
        attention = block.self_attn
        projected = [getattr(attention, f"{name}_proj")(normed).double().numpy() for name in "qkv"]
    states = [state.double().numpy() for state in seen.hidden_states]
    return states, [layer.double().numpy() for layer in seen.attentions], projected


@pytest.fixture
def both(teacher, student, corpus):
    """What teacher (third and last layer) and student (last layer) show of the held-out blocks."""
    from transformers import AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    blocks = pack_blocks(
        read_documents(corpus, "heldout"), encode=tokenizer.encode, shape=(3, 32), separator=tokenizer.eos_token_id
    )
    tokens = torch.from_numpy(blocks)
    return {layer: read(teacher.path, tokens, layer) for layer in (3, 4)}, read(student.path, tokens, 2)


def relation_kl(teacher, student, heads: int) -> float:
    """Mean KL of softmax(X X^T / sqrt(d)), one head and one row at a time."""
    divergences = []
    for block in range(len(teacher)):
        for head in range(heads):
            rows = []
            for vectors in (teacher[block], student[block]):
                d = vectors.shape[1] // heads
                part = vectors[:, head * d : (head + 1) * d]
                scores = np.exp(part @ part.T / math.sqrt(d))
                rows.append(scores / scores.sum(axis=1, keepdims=True))
            divergences.append((rows[0] * np.log(rows[0] / rows[1])).sum(axis=1).mean())
    return float(np.mean(divergences))


def test_hidden_errors_compare_layers_1_and_2_with_2_and_4(both, student, used, tmp_path):
    taught, shown = both[0][4][0], both[1][0]
    for relative in (True, False):
        fresh = another(used, tmp_path / f"{relative}")
        stage = DistillHidden(**{**ALONE, "hidden_weight": 1.0, "relative": relative})
        run(stage, student, tmp_path / "out", fresh)
        sizes = [(taught[layer] ** 2).mean() if relative else 1.0 for layer in (2, 4)]
        errors = [((shown[s] - taught[t]) ** 2).mean() for s, t in ((1, 2), (2, 4))]
        expected = np.mean([error / size for error, size in zip(errors, sizes, strict=True)])
        assert fresh.report.notes["heldout_hidden_before"] == pytest.approx(float(expected), rel=1e-4)


def test_attention_errors_follow_the_layer_map(both, student, used, tmp_path):
    taught, shown = both[0][4][1], both[1][1]
    stage = DistillHidden(
        **{**ALONE, "attention_weight": 1.0, "attention_form": "probabilities", "layer_map": [3, None]}
    )
    run(stage, student, tmp_path / "out", used)
    seen = np.tril(np.ones((32, 32), dtype=bool))
    expected = ((taught[2] - shown[0]) ** 2)[..., seen].mean()
    assert used.report.notes["heldout_attention_before"] == pytest.approx(float(expected), rel=1e-4)


def test_minilm_adds_the_last_layers_attention_and_value_relations(both, student, used, tmp_path):
    (_, taught, projected), (_, shown, ours) = both[0][4], both[1]
    run(DistillHidden(**ALONE, relations="minilm"), student, tmp_path / "out", used)
    t, s = (np.where(x[-1] > 0, x[-1], 1.0) for x in (taught, shown))
    attention = (t * np.log(t / s)).sum(axis=-1).mean()
    expected = attention + relation_kl(projected[2], ours[2], heads=2)  # two value heads of 16
    assert used.report.notes["heldout_relation_before"] == pytest.approx(float(expected), rel=1e-3)


def test_minilm2_adds_relations_of_queries_keys_and_values_of_the_chosen_layer(both, student, used, tmp_path):
    projected, ours = both[0][3][2], both[1][2]
    stage = DistillHidden(**ALONE, relations="minilm2", relation_heads=8, relation_layer=3)
    run(stage, student, tmp_path / "out", used)
    expected = sum(relation_kl(t, s, heads=8) for t, s in zip(projected, ours, strict=True))
    assert used.report.notes["heldout_relation_before"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_killed_run_continues_to_the_same_bits_projection_included(autocast, narrow, used):
    stage = DistillHidden(
        **FAST, checkpoint_every=3, autocast=autocast, embedding_weight=1.0, relations="minilm2", ce_weight=0.1
    )
    assert_continues(lambda: stage, narrow, used, kills={5: 5})


def test_a_killed_run_with_attention_continues_to_the_same_bits(student, used):
    stage = DistillHidden(**FAST, checkpoint_every=3, attention_weight=1.0, relations="minilm")
    assert_continues(lambda: stage, student, used, kills={5: 5})


def test_adapters_are_trained_through_attention_and_relations(student, used, tmp_path):
    pytest.importorskip("peft")
    # Adapters start as nothing, and eight steps are few: they need a faster pace than weights.
    stage = DistillHidden(**{**ALONE, "learning_rate": 2e-2}, lora=8, relations="minilm")
    run(stage, student, tmp_path / "out", used)
    notes = used.report.notes
    assert notes["heldout_relation_after"] < 0.9 * notes["heldout_relation_before"]
    # Two layers of q, o (64 by 64), k, v (64 by 32), gate, up, down (64 by 256), rank 8 times the sum of both sides.
    assert notes["parameters_trained"] == 2 * 8 * (2 * 128 + 2 * 96 + 3 * 320)


@pytest.mark.parametrize("quantized", ["straight_through", "frozen"])
def test_weights_on_a_grid_stay_on_it(quantized, narrow, used, tmp_path):
    from harness.stages.grids import read_grids
    from harness.stages.quantize.rtn import QuantizeRtn

    (tmp_path / "rounded").mkdir()
    QuantizeRtn(bits=4, group=32).apply(narrow, tmp_path / "rounded", context=another(used, tmp_path / "s"))
    stage = DistillHidden(**FAST, relations="minilm2", quantized=quantized)
    run(stage, artifact(tmp_path / "rounded", "grid"), tmp_path / "out", used)
    before, after = (read_grids(artifact(tmp_path / name, "grid")) for name in ("rounded", "out"))
    assert before.keys() == after.keys() != set()
    # Leaving the grid would have been refused when the model was saved; the loss says that something was trained.
    assert used.report.notes["heldout_hidden_after"] < used.report.notes["heldout_hidden_before"]


def test_layers_are_mapped_evenly_and_the_last_to_the_last():
    # TinyBERT's four layers learn from every third of twelve; 2.5 is rounded up; five of three still start at one.
    assert uniform_map(12, 4) == [3, 6, 9, 12]
    assert uniform_map(5, 2) == [3, 5]
    assert uniform_map(7, 7) == list(range(1, 8))
    assert uniform_map(3, 5) == [1, 1, 2, 2, 3]
    assert all(uniform_map(n, m)[-1] == n for n in range(1, 30) for m in range(1, 30))


def test_attention_and_minilm_need_as_many_heads(narrow, used, tmp_path):
    for args in ({"attention_weight": 1.0}, {"relations": "minilm"}):
        with pytest.raises(Unsupported, match="heads cannot be compared"):
            run(DistillHidden(**{**ALONE, **args}), narrow, tmp_path / "out", used)


def test_a_model_without_separate_projections_cannot_give_relations(student, used, tmp_path):
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(student.path)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    folder = tmp_path / "fused"
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(Unsupported, match="0 modules named q_proj for 2 layers"):
        run(DistillHidden(**ALONE, relations="minilm2"), artifact(folder, "hf"), tmp_path / "out", used)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"layer_map": [1, 2, 4], "hidden_weight": 1.0}, "one entry for each layer"),
        ({"layer_map": [1, 5], "hidden_weight": 1.0}, "one entry for each layer"),
        ({"layer_map": [1, 3], "hidden_weight": 1.0}, "after the final norm"),
        ({"layer_map": [4, 4], "hidden_weight": 1.0}, "after the final norm"),
        ({"relations": "minilm2", "relation_layer": 5}, "the teacher has 4 layers"),
        ({"relations": "minilm2", "relation_heads": 5}, "cannot be cut into equal heads"),
    ],
)
def test_what_does_not_fit_these_models_is_refused(args, said, student, used, tmp_path):
    with pytest.raises(SpecError, match=said):
        run(DistillHidden(**{**ALONE, **args}), student, tmp_path / "out", used)
    assert not list((tmp_path / "out").iterdir())


def test_another_vocabulary_is_refused(used, tmp_path):
    stranger = artifact(tiny_llama(tmp_path / "model", vocab=370), "hf")
    with pytest.raises(SpecError, match="different vocabularies"):
        run(DistillHidden(**FAST), stranger, tmp_path / "out", used)


def test_teacher_and_corpus_are_asked_for_by_name():
    needs = DistillHidden(tokens=9999, teacher={"source": "hub:a/b"}).needs
    assert needs == (Need(name="teacher", source="hub:a/b"), Need(name="corpus", source="docstrings:default"))


@pytest.mark.parametrize(
    "args",
    [
        {"hidden_weight": 0},
        {"hidden_weight": -1},
        {"relations": True, "relation_weight": 0, "hidden_weight": 0},
        {"attention_weight": -1},
        {"kd_weight": -1},
        {"ce_weight": -1},
        {"layer_map": []},
        {"layer_map": [None, None]},
        {"layer_map": [0, 1]},
        {"attention_form": "logits"},
        {"relations": "minilm3"},
        {"relation_heads": 0, "relations": "minilm2"},
        {"relation_heads": 4, "relations": "minilm"},
        {"relation_layer": 0},
        {"teacher": "nobody"},
        {"learning_rate": 0},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        DistillHidden(**{**FAST, **args})
