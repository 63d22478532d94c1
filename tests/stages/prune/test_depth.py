"""Depth pruning: block influence by another computation, and a pruned model against one that skips layers."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact
from harness.sources.corpus import pack_blocks, read_documents, write_documents
from harness.spec import Need, Use
from harness.stages.prune.depth import PruneDepth, block_influence, decoder_layers, lowest, remove_layers, renamed
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

torch = pytest.importorskip("torch")
LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model"), layers=LAYERS), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=TEXT.splitlines(), heldout=["never looked at"])
    return artifact(folder, "text")


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prune(source: Artifact, corpus: Artifact, tmp_path: Path, **args):
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch", corpus=corpus)
    PruneDepth(**{"tokens": 128, "sequence": 32, **args}).apply(source, out, context=used)
    return out, used.report


def blocks_of(source: Artifact, corpus: Artifact) -> np.ndarray:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    documents = read_documents(corpus, "train")
    return pack_blocks(documents, encode=tokenizer.encode, shape=(4, 32), separator=tokenizer.eos_token_id, seed=0)


def influence_by_hidden_states(folder: Path, blocks_NT: np.ndarray) -> list[float]:
    """1 - mean cosine in float64 from `hidden_states`, without the final norm, which would change the last."""
    model = load(folder)
    model.model.norm = torch.nn.Identity()
    with torch.inference_mode():
        states = model(torch.from_numpy(blocks_NT), output_hidden_states=True).hidden_states
    streams = [state.double().numpy().reshape(-1, state.shape[-1]) for state in states]
    result = []
    for before, after in pairwise(streams):
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        result.append(1 - float(np.mean((before * after).sum(axis=1) / norms)))
    return result


def skip(model, removed) -> None:
    """Makes layers of a loaded model give back what they were given."""
    for index in removed:
        model.model.layers[index].forward = lambda hidden_states, *_, **__: hidden_states


def test_depth_pruning_is_a_proper_plugin():
    check_plugin("stages", PruneDepth)


def test_block_influence_equals_an_independent_computation(model, corpus, tmp_path):
    _, report = prune(model, corpus, tmp_path, layers=1)
    expected = influence_by_hidden_states(model.path, blocks_of(model, corpus))
    np.testing.assert_allclose(report.notes["block_influence"], expected, atol=1e-5)
    assert report.notes["layers_removed"] == [int(np.argmin(expected))]
    assert report.tokens == 128


@pytest.mark.parametrize("idle", range(LAYERS))
def test_a_layer_that_adds_nothing_goes_first(idle, model, corpus, tmp_path):
    from transformers import AutoTokenizer

    changed = load(model.path)
    layer = changed.model.layers[idle]
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    changed.save_pretrained(tmp_path / "changed")
    AutoTokenizer.from_pretrained(model.path).save_pretrained(tmp_path / "changed")
    out, report = prune(artifact(tmp_path / "changed", "hf"), corpus, tmp_path, layers=1)
    assert report.notes["layers_removed"] == [idle]
    assert report.notes["block_influence"][idle] == pytest.approx(0, abs=1e-6)
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(load(out)(tokens).logits, changed.eval()(tokens).logits)


def test_the_pruned_model_answers_like_the_whole_one_with_those_layers_skipped(model, corpus, tmp_path):
    out, report = prune(model, corpus, tmp_path, layers=2)
    whole, pruned = load(model.path), load(out)
    skip(whole, report.notes["layers_removed"])
    tokens = torch.arange(3, 67).reshape(2, 32)
    with torch.inference_mode():
        torch.testing.assert_close(pruned(tokens).logits, whole(tokens, use_cache=False).logits, rtol=0, atol=0)


def generates_the_same_with_and_without_its_cache(model) -> bool:
    tokens = torch.arange(3, 13)[None]
    answers = [
        model.generate(tokens, max_new_tokens=12, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    ]
    return torch.equal(*answers)


def test_the_pruned_model_generates_the_same_with_and_without_its_cache(model, corpus, tmp_path):
    pruned = load(prune(model, corpus, tmp_path, layers=2)[0])
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1]
    assert generates_the_same_with_and_without_its_cache(pruned)


def test_removing_in_memory_leaves_a_model_that_runs_with_its_cache(model):
    pruned = load(model.path)
    remove_layers(pruned, "model.layers", [0, 2])
    assert generates_the_same_with_and_without_its_cache(pruned)


def test_keeping_and_removing_are_two_ways_to_say_the_same(model, corpus, tmp_path):
    first, _ = prune(model, corpus, tmp_path / "a", layers=3)
    second, _ = prune(model, corpus, tmp_path / "b", keep=1)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_tokenizer_and_template_are_copied_and_the_configuration_agrees(model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (model.path / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == LAYERS - 1


def test_the_stored_type_is_kept(model, corpus, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_llama(tmp_path / "model")
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    out, _ = prune(artifact(folder, "hf"), corpus, tmp_path, layers=1)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_settings_with_an_entry_a_layer_follow_their_layers():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=kinds,
    )
    model = Qwen2ForCausalLM(config).eval()
    remove_layers(model, "model.layers", [0, 3])
    assert model.config.layer_types == [kinds[1], kinds[2]]
    assert model.config.num_hidden_layers == 2
    assert model(torch.arange(9)[None]).logits.isfinite().all()


def test_weights_on_a_grid_keep_it_under_their_new_names(model, corpus, tmp_path):
    from harness.stages.grids import read_grids
    from harness.stages.quantize.rtn import QuantizeRtn

    (tmp_path / "quantized").mkdir()
    QuantizeRtn(bits=4, group=32).apply(model, tmp_path / "quantized", context=context(tmp_path / "quantizing"))
    source = artifact(tmp_path / "quantized", "grid")
    out, report = prune(source, corpus, tmp_path, layers=2)
    kept = [index for index in range(LAYERS) if index not in report.notes["layers_removed"]]
    before, after, pruned = read_grids(source), read_grids(artifact(out, "grid")), load(out)
    assert len(after) == len(before) * len(kept) // LAYERS
    for name, gridded in after.items():
        position = int(name.split(".")[2])
        old = before[name.replace(f"layers.{position}.", f"layers.{kept[position]}.")]
        torch.testing.assert_close(gridded.scales_RG, old.scales_RG, rtol=0, atol=0)
        torch.testing.assert_close(gridded.snap(pruned.get_parameter(name)), pruned.get_parameter(name))
    assert report.nominal_bytes < (out / "model.safetensors").stat().st_size


def test_grids_of_weights_outside_the_layers_stay_and_the_others_move_up():
    grids = {"lm_head.weight": "h", "model.layers.1.a.weight": "1", "model.layers.2.a.weight": "2"}
    grids |= {"model.layers.11.a.weight": "11"}
    moved = {"lm_head.weight": "h", "model.layers.0.a.weight": "1", "model.layers.9.a.weight": "11"}
    assert renamed(grids, "model.layers", [0, 2]) == moved


@pytest.mark.parametrize(
    ("scores", "count", "expected"), [([3, 1, 2], 2, (1, 2)), ([1, 1, 1], 1, (2,)), ([2, 1], 1, (1,))]
)
def test_the_lowest_scores_go_and_of_equals_the_later(scores, count, expected):
    assert lowest(scores, count) == expected


def test_a_model_with_two_lists_of_that_length_is_not_guessed_at(model):
    twice = load(model.path)
    twice.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(LAYERS))
    with pytest.raises(Unsupported, match=r"model\.layers, experts|experts, model\.layers"):
        decoder_layers(twice)


def test_hidden_states_that_are_not_numbers_are_an_error(model, tmp_path):
    broken = load(model.path)
    torch.nn.init.constant_(broken.model.layers[1].mlp.down_proj.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        block_influence(broken, np.arange(3, 35).reshape(1, 32), context=context(tmp_path))


@pytest.mark.parametrize("args", [{"layers": LAYERS}, {"keep": LAYERS}])
def test_removing_all_or_none_is_refused_with_the_number_of_layers(args, model, corpus, tmp_path):
    with pytest.raises(SpecError, match="the model has 4 layers"):
        prune(model, corpus, tmp_path, **args)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"layers": 1, "keep": 1},
        {"layers": 0},
        {"layers": 1, "tokens": 8, "sequence": 9},
        {"layers": 1, "corpus": "x"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match=r"allowed|either"):
        PruneDepth(**args)


def test_the_corpus_is_asked_for_by_name():
    assert PruneDepth(layers=1).needs == (Need(name="corpus", source="docstrings:default"),)
    made = {"stages": [{"use": "capture.text", "args": {"tokens": 9}}]}
    expected = Need(name="corpus", source="reference", stages=(Use(use="capture.text", args={"tokens": 9}),))
    assert PruneDepth(layers=1, corpus=made).needs == (expected,)
