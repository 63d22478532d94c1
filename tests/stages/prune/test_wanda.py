"""Wanda through llm-compressor: its masks by the equation, layer after layer, and what the stage adds around it."""

from dataclasses import replace

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.spec import Hardware, Need
from harness.stages.prune.magnitude import PruneMagnitude
from harness.stages.prune.wanda import PruneWanda
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.prune.slow_references import (
    inputs_of,
    linear_layers,
    lowest_in_groups,
    lowest_in_rows,
    output_error,
    wanda_scores,
    weights_of,
)
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load, loud_llama, prune, small_corpus
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
PATTERNS = ["unstructured", "2:4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return loud_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def wanda(**args) -> PruneWanda:
    return PruneWanda(tokens=TOKENS, sequence=SEQUENCE, **args)


@pytest.fixture(scope="module")
def pruned(model, corpus, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    """The model pruned once in each pattern."""
    runs = {}
    for pattern in PATTERNS:
        out, report = prune(wanda(pattern=pattern), model, tmp_path_factory.mktemp("pruned"), corpus=corpus)
        runs[pattern] = artifact(out, "hf"), report
    return runs


def expected_masks(source: Artifact, blocks_NT: np.ndarray, pattern: str) -> dict[str, np.ndarray]:
    """Masks from the equation: each decoder layer is scored on what the pruned layers before it send."""
    running, masks = load(source.path), {}
    for number in range(running.config.num_hidden_layers):
        names = [name for name in linear_layers(running) if name.startswith(f"model.layers.{number}.")]
        inputs = inputs_of(running, names, blocks_NT)
        for name in names:
            weight = running.get_submodule(name).weight
            scores_RC = wanda_scores(weight.detach().double().numpy(), inputs[name])
            half = scores_RC.shape[1] // 2
            mask_RC = lowest_in_groups(scores_RC, 2, 4) if pattern == "2:4" else lowest_in_rows(scores_RC, half)
            masks[name] = mask_RC
            with torch.no_grad():
                weight[torch.from_numpy(mask_RC)] = 0
    return masks


def test_wanda_is_a_proper_plugin():
    check_plugin("stages", PruneWanda)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_weights_with_the_lowest_size_times_input_norm_go_and_others_stay(pattern, pruned, model, corpus):
    before, after = weights_of(model.path), weights_of(pruned[pattern][0].path)
    masks = expected_masks(model, blocks_of(model, corpus), pattern)
    assert len(masks) == 14
    for name, mask_RC in masks.items():
        weight = before.pop(f"{name}.weight")
        np.testing.assert_array_equal(after[f"{name}.weight"], np.where(mask_RC, 0, weight), err_msg=name)
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight, err_msg=name)


def test_every_row_loses_half(pruned, model):
    after = weights_of(pruned["unstructured"][0].path)
    for name in linear_layers(load(model.path)):
        assert ((after[f"{name}.weight"] == 0).mean(axis=1) == 0.5).all()


def test_every_group_of_four_has_exactly_two_zeros(pruned, model):
    after = weights_of(pruned["2:4"][0].path)
    for name in linear_layers(load(model.path)):
        assert ((after[f"{name}.weight"].reshape(-1, 4) == 0).sum(axis=1) == 2).all()


def test_with_loud_inputs_the_output_moves_less_than_under_magnitude_pruning(pruned, model, corpus, tmp_path):
    by_magnitude, _ = prune(PruneMagnitude(scope="row"), model, tmp_path)
    before, ours, theirs = map(weights_of, (model.path, pruned["unstructured"][0].path, by_magnitude))
    projections = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]  # they read the loud channels directly
    inputs = inputs_of(load(model.path), projections, blocks_of(model, corpus))
    for name in projections:
        key = f"{name}.weight"
        error = output_error(before[key], ours[key], inputs[name])
        assert error < 0.5 * output_error(before[key], theirs[key], inputs[name])


def test_the_report_tells_sparsity_and_text(pruned, corpus):
    _, report = pruned["2:4"]
    assert report.tokens == TOKENS
    assert report.notes["tensors_pruned"] == 14
    assert report.notes["sparsity_of_pruned_weights"] == 0.5
    assert report.nominal_bytes is None
    assert "are zero (2:4): no smaller file and no speed without sparse kernels" in report.labels[0]


def test_the_folder_is_a_plain_model_with_the_files_it_came_with(pruned, model):
    from harness.stages.hf_folder import load_model

    folder = pruned["unstructured"][0].path
    assert {file.name for file in folder.iterdir()} == {file.name for file in model.path.iterdir()}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model.path / name).read_bytes()
    loaded = load_model(pruned["unstructured"][0], dtype=torch.float32, hardware=Hardware())
    assert loaded(torch.arange(3, 20)[None]).logits.isfinite().all()


def test_the_same_seed_gives_the_same_bytes_and_nothing_lands_in_the_working_directory(
    pruned, model, corpus, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out, _ = prune(wanda(), model, tmp_path, corpus=corpus)
    first = pruned["unstructured"][0].path
    assert (out / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert not list((tmp_path / "here").iterdir())


def test_a_model_stored_in_bfloat16_with_an_untied_head_stays_so(corpus, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_llama(tmp_path / "model", tie=False)
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    stage = wanda(skip=["v_proj"], sparsity=0.3)
    out, report = prune(stage, artifact(folder, "hf"), tmp_path, corpus=corpus)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert report.notes["tensors_pruned"] == 15 - 2  # the head is pruned and the two v_proj are not
    for name, weight in after.items():
        assert torch.equal(weight, torch.where(weight == 0, 0, before[name]))
        columns = weight.shape[-1]
        pruned_here = name.endswith("lm_head.weight") or ("_proj" in name and "v_proj" not in name)
        assert (weight == 0).float().mean().item() == pytest.approx(int(0.3 * columns) / columns if pruned_here else 0)


def test_progress_goes_from_nothing_to_all(model, corpus, tmp_path):
    seen: list[float] = []
    (tmp_path / "out").mkdir()
    used = context(tmp_path / "scratch", corpus=corpus)
    watching = replace(used, progress=lambda fraction, _: seen.append(fraction))
    wanda().apply(model, tmp_path / "out", context=watching)
    calibrating = seen[:-14]  # then comes the writing of fourteen weights
    # Fourteen layers see eight blocks twice each.
    assert calibrating == pytest.approx([(step + 1) / 224 for step in range(224)])


def test_inputs_that_are_not_numbers_are_an_error(corpus, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    broken = load(folder)
    with torch.no_grad():
        broken.model.layers[1].input_layernorm.weight.fill_(3e38)
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.\w_proj: inputs are not finite"):
        prune(wanda(), artifact(folder, "hf"), tmp_path, corpus=corpus)


def test_a_skip_that_names_nothing_is_refused_before_anything_runs(model, tmp_path):
    with pytest.raises(SpecError, match="skip names no linear layer"):
        prune(wanda(skip=["head"]), model, tmp_path)


@pytest.mark.parametrize(
    "args", [{"sparsity": 1.5}, {"pattern": "1:4"}, {"tokens": 8, "sequence": 9}, {"corpus": "x"}, {"skip": "lm_head"}]
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        PruneWanda(**args)


def test_the_corpus_is_asked_for_by_name():
    assert PruneWanda().needs == (Need(name="corpus", source="docstrings:default"),)


def test_a_device_that_the_library_would_not_use_is_refused(model, corpus, tmp_path):
    elsewhere = replace(context(tmp_path / "scratch", corpus=corpus), hardware=Hardware(device="mps"))
    if torch.backends.mps.is_available():
        pytest.skip("this machine has that device")
    with pytest.raises(Unsupported, match="the cell's device is mps and llm-compressor would use"):
        wanda().apply(model, tmp_path, context=elsewhere)
