"""Random students: the shape that was asked for, the seed that decides, and the tokenizer of the model that came in."""

import json
from pathlib import Path

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact
from harness.stages.init.scratch import InitScratch
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch")
VOCABULARY = 384


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


def start(source: Artifact, out: Path, *, seed: int = 0, **args):
    from dataclasses import replace

    out.mkdir(parents=True)
    used = replace(context(out.with_name(f"{out.name}-scratch")), seed=seed)
    InitScratch(**args).apply(source, out, context=used)
    return used.report


def load(folder: Path):
    from harness.spec import Hardware
    from harness.stages.hf_folder import load_model

    return load_model(artifact(folder, "hf"), dtype=torch.float32, hardware=Hardware())


def test_starting_from_scratch_is_a_proper_plugin():
    check_plugin("stages", InitScratch)


def test_the_student_has_the_shape_that_was_asked_for(model, tmp_path):
    report = start(model, tmp_path / "out", layers=3, hidden=48, intermediate=96, heads=2, kv_heads=1, head_dim=8)
    # A layer: q and o 48 x 16, k and v 48 x 8, three MLP matrices 48 x 96, two norms; tied embeddings; the last norm.
    layer = 2 * 48 * 16 + 2 * 48 * 8 + 3 * 48 * 96 + 2 * 48
    expected = VOCABULARY * 48 + 3 * layer + 48
    assert sum(parameter.numel() for parameter in load(tmp_path / "out").parameters()) == expected
    assert report.notes["parameters"] == expected
    assert report.notes["shape"]["layers"] == 3


def test_what_is_not_given_stays_as_it_came(model, tmp_path):
    start(model, tmp_path / "out", layers=1)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model.path, tmp_path / "out"))
    assert after.pop("num_hidden_layers") == 1
    assert before.pop("num_hidden_layers") == 2
    assert after == before


def test_the_head_width_stays_when_the_hidden_size_shrinks(model, tmp_path):
    start(model, tmp_path / "out", hidden=32)
    assert load(tmp_path / "out").model.layers[0].self_attn.q_proj.weight.shape == (4 * 16, 32)


def test_the_seed_decides_the_weights(model, tmp_path):
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        start(model, tmp_path / name, seed=seed, layers=1)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_the_same_shape_and_seed_are_what_the_models_own_class_draws(model, tmp_path):
    start(model, tmp_path / "out", seed=0)  # `tiny_llama` calls the class itself under seed 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (model.path / "model.safetensors").read_bytes()


def test_the_weights_are_random_and_as_wide_as_the_configuration_says(model, tmp_path):
    start(model, tmp_path / "out", seed=1)
    before, after = load(model.path), load(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        drawn = after.get_parameter(name).detach()
        assert torch.isclose(drawn, before.get_parameter(name)).float().mean() < 0.01
        # 16,384 and more draws from N(0, 0.15): the standard error of their deviation is under 0.15 / sqrt(2 * 16384).
        assert float(drawn.std()) == pytest.approx(0.15, abs=6 * 0.15 / (2 * 16384) ** 0.5)


def test_drawing_leaves_the_global_generator_alone(model, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start(model, tmp_path / "out", layers=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_tokenizer_and_the_template_are_the_incoming_ones(model, tmp_path):
    start(model, tmp_path / "out", layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (model.path / name).read_bytes()


def test_the_stored_type_is_kept(tmp_path):
    from safetensors.torch import load_file

    folder = tiny_llama(tmp_path / "model")
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    start(artifact(folder, "hf"), tmp_path / "out", layers=1)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def sliding(folder: Path, kinds: list[str]) -> Artifact:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=len(kinds),
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=kinds,
        sliding_window=8,
        use_sliding_window=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return artifact(folder, "hf")


def test_layers_of_different_kinds_are_cut_but_never_made_up(tmp_path):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    source = sliding(tmp_path / "model", kinds)
    start(source, tmp_path / "out", layers=2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == kinds[:2]
    with pytest.raises(Unsupported, match="layer_types"):
        start(source, tmp_path / "more", layers=4)


def test_layers_of_one_kind_may_become_more(tmp_path):
    source = sliding(tmp_path / "model", ["full_attention"] * 2)
    start(source, tmp_path / "out", layers=4)
    assert load(tmp_path / "out").config.layer_types == ["full_attention"] * 4


def test_a_shape_that_transformers_refuses_is_the_users_mistake(model, tmp_path):
    with pytest.raises(SpecError, match="not a multiple of the number of attention heads"):
        start(model, tmp_path / "out", hidden=30)


def test_heads_that_cannot_share_key_heads_evenly_are_refused(model, tmp_path):
    with pytest.raises(SpecError, match="4 query heads cannot share 3"):
        start(model, tmp_path / "out", kv_heads=3)


def test_a_configuration_without_the_setting_is_refused_by_name(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=1)).save_pretrained(tmp_path / "m")
    with pytest.raises(Unsupported, match="no hidden_size"):
        start(artifact(tmp_path / "m", "hf"), tmp_path / "out", hidden=8)


@pytest.mark.parametrize("args", [{"layers": 0}, {"hidden": -1}])
def test_sizes_below_one_are_refused(args):
    with pytest.raises(ValueError, match="allowed: a number from 1"):
        InitScratch(**args)
