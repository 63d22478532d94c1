"""SparseGPT through llm-compressor, against the optimal brain surgeon written out slowly."""

import numpy as np
import pytest

from harness.errors import ModelError
from harness.interfaces import Artifact, BuildReport
from harness.spec import Hardware, Need
from harness.stages.prune.magnitude import PruneMagnitude
from harness.stages.prune.sparsegpt import PruneSparseGpt
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.slow_references import inputs_of, linear_layers, output_error, surgeon, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load, loud_llama, prune, small_corpus
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
# Inputs of the first decoder layer do not depend on what was pruned; the last has two blocks of 128 columns.
FIRST = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return loud_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def inputs(model, corpus) -> dict[str, np.ndarray]:
    return inputs_of(load(model.path), FIRST, blocks_of(model, corpus))


def sparsegpt(**args) -> PruneSparseGpt:
    return PruneSparseGpt(tokens=TOKENS, sequence=SEQUENCE, **args)


@pytest.fixture(scope="module")
def pruned(model, corpus, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    """The model pruned once in each pattern."""
    runs = {}
    for pattern in ("unstructured", "2:4"):
        out, report = prune(sparsegpt(pattern=pattern), model, tmp_path_factory.mktemp("pruned"), corpus=corpus)
        runs[pattern] = artifact(out, "hf"), report
    return runs


def test_sparsegpt_is_a_proper_plugin():
    check_plugin("stages", PruneSparseGpt)


@pytest.mark.parametrize("name", FIRST)
def test_the_weights_are_those_of_the_optimal_brain_surgeon(name, pruned, model, inputs):
    before, after = (weights_of(folder)[f"{name}.weight"] for folder in (model.path, pruned["unstructured"][0].path))
    expected = surgeon(before, inputs[name], sparsity=0.5)
    # float32 against float64: a weight at the threshold may fall on the other side and moves the rest of its row.
    same_rows = ((after == 0) == (expected == 0)).all(axis=1)
    assert same_rows.mean() > 0.95
    np.testing.assert_allclose(after[same_rows], expected[same_rows], atol=2e-3)
    errors = [output_error(before, weight, inputs[name]) for weight in (after, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("name", FIRST)
def test_the_output_moves_less_than_under_magnitude_pruning(name, pattern, pruned, model, inputs, tmp_path):
    by_magnitude, _ = prune(PruneMagnitude(pattern=pattern), model, tmp_path)
    folders = (model.path, pruned[pattern][0].path, by_magnitude)
    before, ours, theirs = (weights_of(folder)[f"{name}.weight"] for folder in folders)
    assert output_error(before, ours, inputs[name]) < output_error(before, theirs, inputs[name])


def test_every_group_of_four_has_exactly_two_zeros(pruned, model):
    after = weights_of(pruned["2:4"][0].path)
    for name in linear_layers(load(model.path)):
        assert ((after[f"{name}.weight"].reshape(-1, 4) == 0).sum(axis=1) == 2).all()


def test_the_weights_that_stay_are_updated_and_other_tensors_are_not(pruned, model):
    before, after = weights_of(model.path), weights_of(pruned["unstructured"][0].path)
    names = {f"{name}.weight" for name in linear_layers(load(model.path))}
    for name in names:
        stays = after[name] != 0
        assert (after[name][stays] != before[name][stays]).mean() > 0.5
    for name in before.keys() - names:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_report_tells_sparsity_and_text(pruned):
    _, report = pruned["unstructured"]
    assert report.tokens == TOKENS
    assert report.notes["tensors_pruned"] == 14
    # One weight more than half in every block of columns, as in the released code.
    assert report.notes["sparsity_of_pruned_weights"] == pytest.approx(0.5, abs=1e-3)
    assert report.notes["sparsity_of_all_weights"] < 0.5
    assert "are zero (unstructured): no smaller file and no speed without sparse kernels" in report.labels[0]


def test_the_same_seed_gives_the_same_bytes_and_the_model_loads(pruned, model, corpus, tmp_path):
    from harness.stages.hf_folder import load_model

    out, _ = prune(sparsegpt(), model, tmp_path, corpus=corpus)
    first = pruned["unstructured"][0].path
    assert (out / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    loaded = load_model(artifact(out, "hf"), dtype=torch.float32, hardware=Hardware())
    assert loaded(torch.arange(3, 20)[None]).logits.isfinite().all()


def test_bfloat16_is_kept(corpus, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_llama(tmp_path / "model")
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    out, report = prune(sparsegpt(), artifact(folder, "hf"), tmp_path, corpus=corpus)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert report.notes["sparsity_of_pruned_weights"] == pytest.approx(0.5, abs=1e-3)


def test_a_hessian_that_cannot_be_inverted_is_an_error_and_no_magnitude_pruning(corpus, tmp_path):
    # Inputs near 1e19 overflow when squared: the Hessian is infinite though every input is a number.
    folder = tiny_llama(tmp_path / "model")
    broken = load(folder)
    with torch.no_grad():
        broken.model.layers[1].post_attention_layernorm.weight.fill_(1e19)
        broken.model.layers[1].mlp.up_proj.weight.zero_()
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match="Hessians could not be inverted"):
        prune(sparsegpt(skip=["lm_head", "up_proj"]), artifact(folder, "hf"), tmp_path, corpus=corpus)


@pytest.mark.parametrize(
    "args",
    [
        {"sparsity": 0},
        {"pattern": "5:10"},
        {"damping": 0},
        {"damping": 2},
        {"tokens": 8, "sequence": 9},
        {"corpus": "x"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        PruneSparseGpt(**args)


def test_the_corpus_is_asked_for_by_name():
    assert PruneSparseGpt().needs == (Need(name="corpus", source="docstrings:default"),)
