"""Width pruning: strengths by a slow computation, cut models against whole ones with the same parts silenced."""

import json
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact
from harness.sources.corpus import pack_blocks, read_documents, write_documents
from harness.spec import Need
from harness.stages.prune.width import PruneWidth
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch")
# The tiny Llama: 64 channels, 256 neurons, 4 query heads of 16 channels, 2 key-value heads, 2 layers, 384 tokens.
HIDDEN, NEURONS, HEADS, KV, WIDTH, LAYERS, VOCABULARY = 64, 256, 4, 2, 16, 2, 384


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=TEXT.splitlines(), heldout=["never looked at"])
    return artifact(folder, "text")


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def saved(model, folder: Path) -> Artifact:
    """A model built by a test, as an artifact with the tiny tokenizer."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return artifact(folder, "hf")


def prune(source: Artifact, corpus: Artifact, tmp_path: Path, **args):
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch", corpus=corpus)
    PruneWidth(**{"tokens": 128, "sequence": 32, **args}).apply(source, out, context=used)
    return out, used.report


def logits(model, count: int = 40):
    with torch.inference_mode():
        return model(torch.arange(3, 3 + count)[None], use_cache=False).logits


def slow_strengths(source: Artifact, corpus: Artifact) -> dict[str, np.ndarray]:
    """sqrt(sum over blocks (mean over positions |x|)^2) in NumPy, from all blocks run together as one batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    blocks_NT = pack_blocks(
        read_documents(corpus, "train"), encode=tokenizer.encode, shape=(4, 32), separator=tokenizer.eos_token_id
    )
    whole, seen = load(source.path), {}
    for name, module in whole.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        elif name.endswith("layernorm"):
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    with torch.inference_mode():
        whole(torch.from_numpy(blocks_NT))
    result = {}
    for name, x in seen.items():
        x_NTC = np.abs(x.double().numpy())
        total = np.zeros(x_NTC.shape[2])
        for block_TC in x_NTC:
            total += (sum(block_TC) / len(block_TC)) ** 2
        result[name] = np.sqrt(total)
    return result


def neurons_by_hand(source, corpus, layer: int) -> np.ndarray:
    return slow_strengths(source, corpus)[f"model.layers.{layer}.mlp.down_proj"]


def heads_by_hand(source, corpus, layer: int) -> list[float]:
    channels = slow_strengths(source, corpus)[f"model.layers.{layer}.self_attn.o_proj"]
    return [float(np.sqrt((channels[head * WIDTH : (head + 1) * WIDTH] ** 2).sum())) for head in range(HEADS)]


def hidden_by_hand(source, corpus) -> np.ndarray:
    norms = [value for name, value in slow_strengths(source, corpus).items() if name.endswith("layernorm")]
    assert len(norms) == 2 * LAYERS
    return sum(norms)


def rows_of(part, whole) -> list[int]:
    """Which rows of `whole` the rows of `part` are; the weights are random, so no two rows are equal."""
    return [int(torch.nonzero((whole == row).all(dim=1)).item()) for row in part]


def test_width_pruning_is_a_proper_plugin():
    check_plugin("stages", PruneWidth)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_neurons_that_stay_are_the_strongest_by_a_slow_computation(layer, model, corpus, tmp_path):
    out, report = prune(model, corpus, tmp_path, intermediate=100)
    part = load(out).model.layers[layer].mlp.gate_proj.weight
    kept = rows_of(part, load(model.path).model.layers[layer].mlp.gate_proj.weight)
    scores = neurons_by_hand(model, corpus, layer)
    assert kept == sorted(np.argsort(-scores)[:100].tolist())
    share = scores[kept].sum() / scores.sum()
    assert report.notes["width"]["intermediate"]["strength_kept"][layer] == pytest.approx(share, rel=1e-5)
    assert report.tokens == 128


def test_a_model_without_its_weak_neurons_answers_like_the_whole_one_with_them_silenced(model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, intermediate=100)
    whole, pruned = load(model.path), load(out)
    for before, after in zip(whole.model.layers, pruned.model.layers, strict=True):
        kept = rows_of(after.mlp.up_proj.weight, before.mlp.up_proj.weight)
        silent = [neuron for neuron in range(NEURONS) if neuron not in kept]
        before.mlp.down_proj.weight.data[:, silent] = 0
    torch.testing.assert_close(logits(pruned), logits(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("args", [{"heads": 2}, {"heads": 2, "kv_heads": 2}, {"heads": 1, "kv_heads": 1}])
def test_a_model_without_its_weak_heads_answers_like_the_whole_one_with_them_silenced(args, model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, **args)
    whole, pruned = load(model.path), load(out)
    for before, after in zip(whole.model.layers, pruned.model.layers, strict=True):
        kept = rows_of(after.self_attn.q_proj.weight, before.self_attn.q_proj.weight)
        silent = [channel for channel in range(HEADS * WIDTH) if channel not in kept]
        before.self_attn.o_proj.weight.data[:, silent] = 0
    torch.testing.assert_close(logits(pruned), logits(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_whole_groups_of_heads_go_together(layer, model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, heads=2)
    whole, pruned = (load(folder).model.layers[layer].self_attn for folder in (model.path, out))
    scores = heads_by_hand(model, corpus, layer)
    # Heads 0 and 1 read key head 0, heads 2 and 3 read key head 1; equal norms of two heads are equal sums of squares.
    group = int(scores[2] ** 2 + scores[3] ** 2 > scores[0] ** 2 + scores[1] ** 2)
    assert rows_of(pruned.q_proj.weight, whole.q_proj.weight) == list(range(32 * group, 32 * group + 32))
    assert rows_of(pruned.k_proj.weight, whole.k_proj.weight) == list(range(16 * group, 16 * group + 16))
    assert rows_of(pruned.v_proj.weight, whole.v_proj.weight) == list(range(16 * group, 16 * group + 16))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_group_is_thinned_alike_when_all_key_heads_stay(layer, model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, heads=2, kv_heads=2)
    whole, pruned = (load(folder).model.layers[layer].self_attn for folder in (model.path, out))
    scores = heads_by_hand(model, corpus, layer)
    kept = [max((0, 1), key=scores.__getitem__), max((2, 3), key=scores.__getitem__)]
    expected = [head * WIDTH + channel for head in kept for channel in range(WIDTH)]
    assert rows_of(pruned.q_proj.weight, whole.q_proj.weight) == expected
    torch.testing.assert_close(pruned.k_proj.weight, whole.k_proj.weight, rtol=0, atol=0)


@pytest.mark.parametrize("tie", [True, False])
def test_cutting_hidden_channels_equals_cutting_every_weight_by_hand(tie, corpus, tmp_path):
    from transformers import LlamaForCausalLM

    source = artifact(tiny_llama(tmp_path / "model", layers=1, tie=tie), "hf")
    out, _ = prune(source, corpus, tmp_path, hidden=48)
    whole = load(source.path)
    norms = {name: value for name, value in slow_strengths(source, corpus).items() if name.endswith("layernorm")}
    kept = sorted(np.argsort(-sum(norms.values()))[:48].tolist())
    layer = whole.model.layers[0]
    weights = {
        "model.embed_tokens.weight": whole.model.embed_tokens.weight[:, kept],
        "model.norm.weight": whole.model.norm.weight[kept],
        "lm_head.weight": whole.lm_head.weight[:, kept],
        "model.layers.0.input_layernorm.weight": layer.input_layernorm.weight[kept],
        "model.layers.0.post_attention_layernorm.weight": layer.post_attention_layernorm.weight[kept],
        "model.layers.0.self_attn.q_proj.weight": layer.self_attn.q_proj.weight[:, kept],
        "model.layers.0.self_attn.k_proj.weight": layer.self_attn.k_proj.weight[:, kept],
        "model.layers.0.self_attn.v_proj.weight": layer.self_attn.v_proj.weight[:, kept],
        "model.layers.0.self_attn.o_proj.weight": layer.self_attn.o_proj.weight[kept],
        "model.layers.0.mlp.gate_proj.weight": layer.mlp.gate_proj.weight[:, kept],
        "model.layers.0.mlp.up_proj.weight": layer.mlp.up_proj.weight[:, kept],
        "model.layers.0.mlp.down_proj.weight": layer.mlp.down_proj.weight[kept],
    }
    config = whole.config
    config.hidden_size = 48
    by_hand = LlamaForCausalLM(config).eval()
    by_hand.load_state_dict(weights)
    torch.testing.assert_close(logits(load(out)), logits(by_hand), rtol=0, atol=0)
    pruned = load(out)
    assert (pruned.lm_head.weight is pruned.model.embed_tokens.weight) is tie


@pytest.mark.parametrize("tie", [True, False])
def test_the_number_of_parameters_is_what_the_sizes_give(tie, corpus, tmp_path):
    from harness.stages.hf_folder import load_model

    source = artifact(tiny_llama(tmp_path / "model", tie=tie), "hf")
    out, report = prune(source, corpus, tmp_path, intermediate=128, heads=2, hidden=40)
    # A layer: q and o 40 x 32, k and v 40 x 16, three MLP matrices 40 x 128, two norms of 40.
    layer = 2 * 40 * 32 + 2 * 40 * 16 + 3 * 40 * 128 + 2 * 40
    expected = VOCABULARY * 40 * (1 if tie else 2) + LAYERS * layer + 40
    assert report.notes["parameters_after"] == expected
    reloaded = load_model(artifact(out, "hf"), dtype=torch.float32, hardware=context(tmp_path / "x").hardware)
    assert sum(parameter.numel() for parameter in reloaded.parameters()) == expected
    before = VOCABULARY * 64 * (1 if tie else 2) + LAYERS * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256 + 2 * 64) + 64
    assert report.notes["parameters_before"] == before


def test_the_configuration_agrees_and_names_the_head_width(model, corpus, tmp_path):
    out, report = prune(model, corpus, tmp_path, intermediate=128, heads=2, hidden=40)
    config = json.loads((out / "config.json").read_text())
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [config[name] for name in sizes] == [40, 128, 2, 1, WIDTH]
    assert {name: (told["before"], told["after"]) for name, told in report.notes["width"].items()} == {
        "intermediate": (256, 128),
        "heads": (4, 2),
        "hidden": (64, 40),
    }


def test_neurons_that_never_speak_go_first(model, corpus, tmp_path):
    whole, dead = load(model.path), [3, 77, 200, 255]
    for layer in whole.model.layers:
        layer.mlp.up_proj.weight.data[dead] = 0
    source = saved(whole, tmp_path / "changed")
    out, report = prune(source, corpus, tmp_path, intermediate=NEURONS - len(dead))
    for before, after in zip(whole.model.layers, load(out).model.layers, strict=True):
        assert set(range(NEURONS)) - set(rows_of(after.mlp.gate_proj.weight, before.mlp.gate_proj.weight)) == set(dead)
    assert report.notes["width"]["intermediate"]["strength_kept"] == pytest.approx([1, 1])
    torch.testing.assert_close(logits(load(out)), logits(whole), rtol=1e-4, atol=1e-4)


def test_heads_that_never_speak_go_first_with_their_group(model, corpus, tmp_path):
    whole = load(model.path)
    for number, layer in enumerate(whole.model.layers):
        layer.self_attn.v_proj.weight.data[WIDTH * number : WIDTH * (number + 1)] = 0  # group 0, then group 1
    out, _ = prune(saved(whole, tmp_path / "changed"), corpus, tmp_path, heads=2)
    for number, (before, after) in enumerate(zip(whole.model.layers, load(out).model.layers, strict=True)):
        alive = list(range(WIDTH, 2 * WIDTH)) if number == 0 else list(range(WIDTH))
        assert rows_of(after.self_attn.k_proj.weight, before.self_attn.k_proj.weight) == alive
    torch.testing.assert_close(logits(load(out)), logits(whole), rtol=1e-4, atol=1e-4)


def test_hidden_channels_that_every_norm_silences_go_first(model, corpus, tmp_path):
    whole, dead = load(model.path), [0, 9, 33, 63]
    for layer in whole.model.layers:
        layer.input_layernorm.weight.data[dead] = 0
        layer.post_attention_layernorm.weight.data[dead] = 0
    out, report = prune(saved(whole, tmp_path / "changed"), corpus, tmp_path, hidden=HIDDEN - len(dead))
    kept = [channel for channel in range(HIDDEN) if channel not in dead]
    part, full = load(out).model.embed_tokens.weight, whole.model.embed_tokens.weight
    torch.testing.assert_close(part, full[:, kept], rtol=0, atol=0)
    assert report.notes["width"]["hidden"]["strength_kept"] == pytest.approx([1])


def test_hidden_channels_are_chosen_by_the_sum_over_all_norms(model, corpus, tmp_path):
    out, _ = prune(model, corpus, tmp_path, hidden=32)
    kept = sorted(np.argsort(-hidden_by_hand(model, corpus))[:32].tolist())
    full = load(model.path).model.embed_tokens.weight
    torch.testing.assert_close(load(out).model.embed_tokens.weight, full[:, kept], rtol=0, atol=0)


def other_family(name: str):
    """A tiny random decoder with biases (Qwen2), norms on heads (Qwen3), or neither (Mistral)."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        **({"head_dim": 16} if name == "Qwen3" else {}),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Mistral"])
def test_other_decoders_of_that_type_are_cut_as_well(name, corpus, tmp_path):
    whole = other_family(name)
    out, _ = prune(saved(whole, tmp_path / "model"), corpus, tmp_path, intermediate=20, heads=2)
    pruned = load(out)
    for before, after in zip(whole.model.layers, pruned.model.layers, strict=True):
        channels = rows_of(after.self_attn.q_proj.weight, before.self_attn.q_proj.weight)
        neurons = rows_of(after.mlp.gate_proj.weight, before.mlp.gate_proj.weight)
        for matrix, kept in ((before.self_attn.o_proj, channels), (before.mlp.down_proj, neurons)):
            silent = [index for index in range(matrix.in_features) if index not in kept]
            matrix.weight.data[:, silent] = 0
    torch.testing.assert_close(logits(pruned), logits(whole), rtol=1e-4, atol=1e-4)
    narrower, _ = prune(artifact(out, "hf"), corpus, tmp_path / "again", hidden=24)
    assert load(narrower).model.embed_tokens.weight.shape == (VOCABULARY, 24)
    assert logits(load(narrower)).isfinite().all()


def test_a_pruned_model_generates_the_same_with_and_without_its_cache(model, corpus, tmp_path):
    pruned = load(prune(model, corpus, tmp_path, intermediate=100, heads=2, hidden=40)[0])
    tokens = torch.arange(3, 13)[None]
    answers = [
        pruned.generate(tokens, max_new_tokens=12, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    ]
    assert torch.equal(*answers)


def test_the_stored_type_and_the_companions_are_kept(corpus, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_llama(tmp_path / "model")
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    out, _ = prune(artifact(folder, "hf"), corpus, tmp_path, intermediate=100)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def on_grid(model: Artifact, tmp_path: Path, **args) -> Artifact:
    from harness.stages.quantize.rtn import QuantizeRtn

    out = tmp_path / "quantized"
    out.mkdir(parents=True)
    QuantizeRtn(bits=4, **args).apply(model, out, context=context(tmp_path / "quantizing"))
    return artifact(out, "grid")


@pytest.mark.parametrize("args", [{"intermediate": 100}, {"heads": 2}, {"hidden": 40}])
def test_weights_on_a_grid_stay_on_it_with_the_scales_of_their_rows(args, model, corpus, tmp_path):
    from harness.stages.grids import read_grids

    source = on_grid(model, tmp_path, group=None)
    out, report = prune(source, corpus, tmp_path, **args)
    before, after = read_grids(source), read_grids(artifact(out, "grid"))
    assert before.keys() == after.keys()
    whole, pruned = load(source.path), load(out)
    for name, gridded in after.items():
        weight = pruned.get_parameter(name)
        assert gridded.scales_RG.shape == (len(weight), 1)
        torch.testing.assert_close(gridded.snap(weight), weight)
        # What training through the rounding starts from was cut as well: rounding it gives the weights that are left.
        torch.testing.assert_close(gridded.snap(gridded.unrounded_RC).to(weight.dtype), weight)
        if args == {"intermediate": 100} and name.endswith(("gate_proj.weight", "up_proj.weight")):
            rows = rows_of(weight, whole.get_parameter(name))
            torch.testing.assert_close(gridded.scales_RG, before[name].scales_RG[rows], rtol=0, atol=0)
    assert report.nominal_bytes < sum(file.stat().st_size for file in out.glob("*.safetensors"))


def test_columns_are_not_taken_out_of_rows_with_several_groups(model, corpus, tmp_path):
    source = on_grid(model, tmp_path, group=32)
    with pytest.raises(Unsupported, match="8 groups a row") as refusal:
        prune(source, corpus, tmp_path, intermediate=128)
    assert "group: null" in refusal.value.remedy


def test_groups_do_not_matter_where_only_rows_go(model, corpus, tmp_path):
    source = on_grid(model, tmp_path, group=32, skip=["lm_head", "down_proj"])
    out, _ = prune(source, corpus, tmp_path, intermediate=128)
    assert load(out).config.intermediate_size == 128


def test_a_model_of_another_type_is_refused_by_name(corpus, tmp_path):
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    source = saved(GemmaForCausalLM(config), tmp_path / "model")
    with pytest.raises(Unsupported, match="'gemma'"):
        prune(source, corpus, tmp_path, intermediate=20)


def test_a_weight_that_is_not_known_is_not_guessed_at(model):
    from harness.stages.prune.decoder import decoder_sizes

    changed = load(model.path)
    changed.model.layers[1].mlp.router = torch.nn.Linear(64, 8)
    with pytest.raises(Unsupported, match=r"2 weights .* first model\.layers\.1\.mlp\.router\.weight \(8, 64\)"):
        decoder_sizes(changed)


def test_activations_that_are_not_numbers_are_an_error(model, corpus, tmp_path):
    broken = load(model.path)
    torch.nn.init.constant_(broken.model.layers[0].mlp.down_proj.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        prune(saved(broken, tmp_path / "model"), corpus, tmp_path, intermediate=100)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"intermediate": 256}, "intermediate is 256"),
        ({"hidden": 65}, "hidden is 64"),
        ({"heads": 4}, "heads is 4"),
        ({"heads": 3}, "no whole groups"),
        ({"heads": 3, "kv_heads": 3}, "2 groups of 2"),
        ({"heads": 3, "kv_heads": 1}, "2 groups of 2"),
        ({"hidden": 41, "heads": 2}, "not a multiple of the number of attention heads"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused_with_a_reason(args, message, model, corpus, tmp_path):
    with pytest.raises(SpecError, match=message):
        prune(model, corpus, tmp_path, **args)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"kv_heads": 1},
        {"intermediate": 0},
        {"heads": -2},
        {"heads": 3, "kv_heads": 2},
        {"hidden": 8, "tokens": 8, "sequence": 9},
        {"hidden": 8, "corpus": "x"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match=r"allowed|at least one"):
        PruneWidth(**args)


@pytest.mark.parametrize(
    ("scores", "count", "expected"), [([3, 1, 2], 2, (0, 2)), ([1, 1, 1], 1, (0,)), ([0, 5, 5, 0], 3, (0, 1, 2))]
)
def test_the_strongest_stay_and_of_equals_the_earlier(scores, count, expected):
    from harness.stages.prune._surgery import strongest

    assert strongest(scores, count) == expected


def test_the_corpus_is_asked_for_by_name():
    assert PruneWidth(hidden=8).needs == (Need(name="corpus", source="docstrings:default"),)


@pytest.mark.model
def test_a_real_model_without_its_weakest_neurons_beats_one_without_as_many_others(smollm2_dir, corpus, tmp_path):
    out, _ = prune(artifact(smollm2_dir, "hf"), corpus, tmp_path, tokens=160, intermediate=1408)
    others = load(smollm2_dir)
    for layer in others.model.layers:
        layer.mlp.down_proj.weight.data[:, :128] = 0
    assert loss_on(load(out), smollm2_dir) < loss_on(others, smollm2_dir)


def loss_on(model, folder: Path) -> float:
    from transformers import AutoTokenizer

    text = (
        "Water boils at a lower temperature on a mountain, because the air above it weighs less. Cooks who live up "
        "there know it well: beans take longer, bread rises faster. A pressure cooker puts back what the height took."
    )
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        return float(model(tokens, labels=tokens).loss)
