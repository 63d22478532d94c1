"""Magnitude pruning: masks by sorting in NumPy, what stays untouched, and what is refused."""

import json

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact
from harness.spec import Hardware
from harness.stages.prune.magnitude import PruneMagnitude, threshold
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.slow_references import linear_layers, lowest_in_groups, lowest_in_rows, weights_of
from tests.stages.prune.sparse_world import load, prune
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def pruned_names(model) -> list[str]:
    return [f"{name}.weight" for name in linear_layers(load(model.path))]


def test_magnitude_pruning_is_a_proper_plugin():
    check_plugin("stages", PruneMagnitude)


@pytest.mark.parametrize("sparsity", [0.5, 0.3, 0.8])
def test_per_row_the_smallest_of_every_row_go(sparsity, model, pruned_names, tmp_path):
    out, _ = prune(PruneMagnitude(scope="row", sparsity=sparsity), model, tmp_path)
    before, after = weights_of(model.path), weights_of(out)
    for name in pruned_names:
        mask_RC = lowest_in_rows(np.abs(before[name]), round(sparsity * before[name].shape[1]))
        np.testing.assert_array_equal(after[name], np.where(mask_RC, 0, before[name]))


def test_per_matrix_the_smallest_of_the_matrix_go(model, pruned_names, tmp_path):
    out, _ = prune(PruneMagnitude(sparsity=0.4), model, tmp_path)
    before, after = weights_of(model.path), weights_of(out)
    for name in pruned_names:
        count = round(0.4 * before[name].size)
        mask_RC = lowest_in_rows(np.abs(before[name]).reshape(1, -1), count).reshape(before[name].shape)
        np.testing.assert_array_equal(after[name], np.where(mask_RC, 0, before[name]))


def test_globally_the_smallest_of_all_matrices_go(model, pruned_names, tmp_path):
    out, report = prune(PruneMagnitude(scope="global", sparsity=0.6), model, tmp_path)
    before, after = weights_of(model.path), weights_of(out)
    everything = np.sort(np.concatenate([np.abs(before[name]).ravel() for name in pruned_names]))
    limit = everything[round(0.6 * everything.size)]  # the smallest that stays; float32 draws do not repeat here
    for name in pruned_names:
        np.testing.assert_array_equal(after[name], np.where(np.abs(before[name]) < limit, 0, before[name]))
    assert report.notes["lowest_sparsity_of_a_tensor"] < 0.6 < report.notes["highest_sparsity_of_a_tensor"]


@pytest.mark.parametrize(("pattern", "zeros", "size"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_in_a_pattern_the_smallest_of_every_group_go(pattern, zeros, size, model, pruned_names, tmp_path):
    out, _ = prune(PruneMagnitude(pattern=pattern, sparsity=zeros / size), model, tmp_path)
    before, after = weights_of(model.path), weights_of(out)
    for name in pruned_names:
        mask_RC = lowest_in_groups(np.abs(before[name]), zeros, size)
        np.testing.assert_array_equal(after[name], np.where(mask_RC, 0, before[name]))
        assert ((after[name].reshape(-1, size) == 0).sum(axis=1) == zeros).all()


@pytest.mark.parametrize("scope", ["row", "matrix", "global"])
def test_equal_magnitudes_are_counted_out_exactly(scope, tmp_path):
    # In bfloat16 with few steps nearly every magnitude occurs many times: a threshold alone would take too many.
    folder = tiny_llama(tmp_path / "model")
    coarse = load(folder)
    with torch.no_grad():
        for name in linear_layers(coarse):
            weight = coarse.get_submodule(name).weight
            weight.copy_((weight * 16).round().clamp(-3, 3) / 4 + 0.125)
    coarse.to(torch.bfloat16).save_pretrained(folder)
    _, report = prune(PruneMagnitude(scope=scope), artifact(folder, "hf"), tmp_path)
    assert report.notes["sparsity_of_pruned_weights"] == 0.5


@pytest.mark.parametrize("sparsity", [0.001, 0.25, 0.5, 0.999])
def test_the_threshold_is_the_value_that_sorting_finds(sparsity):
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(np.abs(rng.normal(size=n)).astype(np.float32)) for n in (500, 1, 499)]
    parts[0][:50] = parts[0][50]  # repeated, so that ties at the threshold are likely somewhere
    value, left = threshold(lambda: parts, sparsity)
    ordered = np.sort(torch.cat(parts).numpy())
    count = round(sparsity * 1000)
    assert value == ordered[count - 1]
    assert left == count - int((ordered < value).sum())


def test_pruning_again_changes_nothing(model, tmp_path):
    first, _ = prune(PruneMagnitude(scope="row"), model, tmp_path / "a")
    second, report = prune(PruneMagnitude(scope="row"), artifact(first, "hf"), tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert report.notes["relative_squared_change"] == 0


def test_everything_else_stays_as_it_was(model, pruned_names, tmp_path):
    out, _ = prune(PruneMagnitude(), model, tmp_path)
    before, after = weights_of(model.path), weights_of(out)
    assert before.keys() == after.keys()
    for name in before.keys() - set(pruned_names):
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (model.path / name).read_bytes()


def test_shards_and_the_stored_type_are_kept_and_the_model_loads(tmp_path):
    from safetensors.torch import load_file

    from harness.stages.hf_folder import load_model

    folder = tiny_llama(tmp_path / "model")
    sharded = load(folder).to(torch.bfloat16)
    (folder / "model.safetensors").unlink()
    sharded.save_pretrained(folder, max_shard_size="100KB")
    out, _ = prune(PruneMagnitude(), artifact(folder, "hf"), tmp_path)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(file.name for file in out.glob("*.safetensors")) == files
    assert {t.dtype for file in files for t in load_file(out / file).values()} == {torch.bfloat16}
    loaded = load_model(artifact(out, "hf"), dtype=torch.float32, hardware=Hardware())
    assert loaded(torch.arange(3, 20)[None]).logits.isfinite().all()


def test_the_report_says_what_sparsity_does_not_give(model, pruned_names, tmp_path):
    out, report = prune(PruneMagnitude(), model, tmp_path)
    stored = weights_of(out)
    zeros, total = sum((w == 0).sum() for w in stored.values()), sum(w.size for w in stored.values())
    assert report.notes["tensors_pruned"] == len(pruned_names) == 14  # two layers of seven
    assert report.notes["weights_pruned"] == sum(stored[name].size for name in pruned_names)
    assert report.notes["sparsity_of_pruned_weights"] == 0.5
    assert report.notes["sparsity_of_all_weights"] == pytest.approx(zeros / total)
    assert report.nominal_bytes is None
    assert report.labels == [
        "50 % of the weights in 14 linear layers are zero (unstructured): no smaller file and no speed without sparse "
        "kernels"
    ]


def test_skipped_layers_stay(model, tmp_path):
    skip = ["lm_head", "down_proj", "model.layers.0.mlp.up_proj"]
    out, report = prune(PruneMagnitude(skip=skip), model, tmp_path)
    dense = {name for name, weight in weights_of(out).items() if weight.ndim == 2 and not (weight == 0).any()}
    down = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    assert dense == {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} | down
    assert report.notes["tensors_pruned"] == 14 - 3


def test_an_untied_head_is_pruned_when_it_is_not_skipped(tmp_path):
    source = artifact(tiny_llama(tmp_path / "model", tie=False), "hf")
    out, report = prune(PruneMagnitude(skip=[]), source, tmp_path)
    assert (weights_of(out)["lm_head.weight"] == 0).mean() == 0.5
    assert report.notes["tensors_pruned"] == 15


def test_a_tied_head_cannot_be_pruned_by_itself(model, tmp_path):
    with pytest.raises(Unsupported, match=r"not in the files.*lm_head"):
        prune(PruneMagnitude(skip=[]), model, tmp_path)


def test_a_skip_that_names_nothing_suggests_a_layer(model, tmp_path):
    with pytest.raises(SpecError, match="did you mean 'down_proj'"):
        prune(PruneMagnitude(skip=["down_prj"]), model, tmp_path)


def test_nothing_left_to_prune_is_unsupported(model, tmp_path):
    every = ["lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with pytest.raises(Unsupported, match="no `Linear` layers left"):
        prune(PruneMagnitude(skip=every), model, tmp_path)


def test_columns_that_do_not_divide_into_groups_are_unsupported(model, tmp_path):
    with pytest.raises(Unsupported, match="64 columns, which do not divide into groups of 10"):
        prune(PruneMagnitude(pattern="5:10"), model, tmp_path)


def test_a_packed_model_is_unsupported(model, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsupported, match="already packed"):
        prune(PruneMagnitude(), artifact(folder, "hf"), tmp_path)


@pytest.mark.parametrize("scope", ["row", "matrix", "global"])
def test_a_model_that_is_sparser_than_asked_is_an_error(scope, model, tmp_path):
    sparse, _ = prune(PruneMagnitude(scope=scope, sparsity=0.7), model, tmp_path / "a")
    with pytest.raises(ModelError, match=r"(69|70)\.\d+ % of the weights are zero, 50 % were asked for"):
        prune(PruneMagnitude(scope=scope), artifact(sparse, "hf"), tmp_path / "b")


def test_a_sparsity_too_small_to_zero_anything_is_an_error(model, tmp_path):
    # round(.005 * 64 columns) is no weight at all, though it is within one per cent of what was asked.
    with pytest.raises(ModelError, match=r"0\.00 % of the weights"):
        prune(PruneMagnitude(scope="row", sparsity=0.005), model, tmp_path)


@pytest.mark.parametrize("scope", ["row", "matrix", "global"])
def test_weights_that_are_not_numbers_are_an_error(scope, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    broken = load(folder)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight: weights are not finite before"):
        prune(PruneMagnitude(scope=scope), artifact(folder, "hf"), tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        {"sparsity": 0},
        {"sparsity": 1},
        {"sparsity": float("nan")},
        {"pattern": "two of four"},
        {"pattern": "4:4"},
        {"pattern": "0:4", "sparsity": 0.5},
        {"pattern": "1:4"},
        {"skip": "lm_head"},
        {"scope": "column"},
        {"scope": "global", "pattern": "2:4"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match=r"allowed|compares within groups"):
        PruneMagnitude(**args)
