"""GPTQ through llm-compressor, against the paper written out slowly, and what a packing stage promises."""

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.spec import Need
from harness.stages.quantize.gptq import QuantizeGptq
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.slow_references import inputs_of, output_error, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import pack, reopened, tensors, unpack_integers
from tests.stages.quantize.slow_quantizers import gptq, round_symmetric, symmetric_scales
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.usefixtures("reloaded_here")
# Inputs of the first decoder layer do not depend on what was rounded.
FIRST = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")]
MIXED = {"down_proj": {"bits": 8, "group": None}, "model.layers.1.self_attn.*": "keep"}


def stage(**args) -> QuantizeGptq:
    return QuantizeGptq(**{"group": 32, "tokens": TOKENS, "sequence": SEQUENCE} | args)


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport]]:
    return {
        "4 bits": pack(stage(), loud, tmp_path_factory.mktemp("four"), corpus=corpus),
        "mixed": pack(stage(bits=3, overrides=MIXED), loud, tmp_path_factory.mktemp("mixed"), corpus=corpus),
    }


@pytest.fixture(scope="module")
def inputs(loud, corpus) -> dict[str, np.ndarray]:
    return inputs_of(load(loud.path), FIRST, blocks_of(loud, corpus))


def test_gptq_is_a_proper_plugin():
    check_plugin("stages", QuantizeGptq)


@pytest.mark.parametrize("name", FIRST)
def test_the_weights_are_those_of_the_paper(name, packed, loud, inputs):
    before, after = weights_of(loud.path)[f"{name}.weight"], unpack_integers(packed["4 bits"][0].path, name)
    expected = gptq(before, inputs[name], bits=4, group=32)
    # float32 against float64: a weight between two points may go to the other one and move the rest of its row.
    same_rows = np.isclose(after, expected, rtol=1e-3, atol=1e-6).all(axis=1)
    assert same_rows.mean() > 0.9
    errors = [output_error(before, weight, inputs[name]) for weight in (after, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("name", FIRST)
def test_the_output_moves_less_than_under_plain_rounding(name, packed, loud, inputs):
    before, after = weights_of(loud.path)[f"{name}.weight"], unpack_integers(packed["4 bits"][0].path, name)
    plain = round_symmetric(before, symmetric_scales(before, 4, 32), 4)
    assert output_error(before, after, inputs[name]) < output_error(before, plain, inputs[name])


@pytest.mark.parametrize("which", ["4 bits", "mixed"])
def test_the_runtime_computes_with_what_the_codes_stand_for(which, packed):
    model = reopened(packed[which][0].path)
    names = [name for name in tensors(packed[which][0].path) if name.endswith("weight_packed")]
    for name in names:
        module = name.removesuffix(".weight_packed")
        found = model.get_submodule(module).weight.double().numpy()
        # One rounding to float32 of code times scale.
        np.testing.assert_allclose(found, unpack_integers(packed[which][0].path, module), rtol=1e-6)


def test_overrides_change_bits_and_keep_layers_bit_for_bit(packed, loud):
    folder, before = packed["mixed"][0].path, tensors(loud.path)
    for layer in (0, 1):
        mlp = tensors(folder, f"model.layers.{layer}.mlp.down_proj")
        # 256 columns of 8 bits are 64 words, and a whole row shares a scale; 64 columns of 3 bits are 6 words.
        assert (mlp["weight_packed"].shape, mlp["weight_scale"].shape) == ((64, 64), (64, 1))
        assert tensors(folder, f"model.layers.{layer}.mlp.up_proj")["weight_packed"].shape == (256, 6)
    for part in "qkvo":
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        assert torch.equal(tensors(folder)[name], before[name])
    assert torch.equal(tensors(folder)["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_the_report_proves_what_was_stored(packed):
    report = packed["mixed"][1]
    proof = report.notes["coverage"]
    assert proof["layers"] == {"pack-quantized 3 bits, group 32": 8, "pack-quantized 8 bits, whole row": 2}
    assert proof["layers_left_plain"] == 4
    assert proof["activations"] == ["not quantized"]
    assert report.nominal_bytes == proof["bytes"]
    assert report.notes["calibration"] == {"text": "corpus", "blocks": 8, "sequence": SEQUENCE, "seed": 0}
    assert report.tokens == TOKENS
    # One layer has 61440 weights. Both have down (16384), gate and up (16384 each); layer 0 has q and o (4096 each) and
    # k and v (2048 each) too. Of 147776 parameters with the embedding (384 * 64) and 5 norms of 64.
    assert proof["share_quantized"] == pytest.approx((2 * 3 * 16384 + 12288) / 147776)


def test_the_same_seed_gives_the_same_bytes_and_the_model_can_draw_its_own_text(loud, tmp_path):
    runs = [pack(stage(data_free=True), loud, tmp_path / name) for name in ("one", "two")]
    first, second = ((run[0].path / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    assert runs[0][1].notes["calibration"]["text"] == "its own"
    assert stage(data_free=True).needs == ()


def test_whole_rows_at_two_bits_without_order_and_with_zero_points(loud, corpus, tmp_path):
    asked = stage(bits=2, group=None, symmetric=False, act_order=False)
    out, report = pack(asked, loud, tmp_path, corpus=corpus)
    assert report.notes["coverage"]["layers"] == {"pack-quantized 2 bits, whole row": 14}
    module = "model.layers.0.mlp.up_proj"
    found = reopened(out.path).get_submodule(module).weight.double().numpy()
    np.testing.assert_allclose(found, unpack_integers(out.path, module), rtol=1e-6)


def test_a_hessian_that_cannot_be_inverted_is_an_error_and_no_plain_rounding(corpus, tmp_path):
    # Inputs near 1e19 overflow when squared: the Hessian is infinite though every input is a number.
    folder = tiny_llama(tmp_path / "model")
    broken = load(folder)
    with torch.no_grad():
        broken.model.layers[1].post_attention_layernorm.weight.fill_(1e19)
        broken.model.layers[1].mlp.up_proj.weight.zero_()
    broken.save_pretrained(folder)
    with pytest.raises(ModelError, match="Hessian inversion failed"):
        pack(stage(ignore=["lm_head", "up_proj"]), artifact(folder, "hf"), tmp_path, corpus=corpus)


def test_weights_that_are_no_numbers_are_refused(corpus, tmp_path):
    folder = tiny_llama(tmp_path / "model")
    broken = load(folder)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken.save_pretrained(folder)
    with pytest.raises(ModelError):
        pack(stage(), artifact(folder, "hf"), tmp_path, corpus=corpus)


def test_groups_that_do_not_divide_and_a_tied_head_are_refused(loud, corpus, tmp_path):
    with pytest.raises(Unsupported, match="64 columns, which groups of 48 do not divide"):
        pack(stage(group=48), loud, tmp_path / "group", corpus=corpus)
    with pytest.raises(Unsupported, match="is the embedding too"):
        pack(stage(ignore=[]), loud, tmp_path / "head", corpus=corpus)


@pytest.mark.parametrize("args", [{"ignore": ["lm_haed"]}, {"overrides": {"model.layers.7.*": "keep"}}])
def test_a_pattern_that_fits_no_layer_is_the_users_mistake(args, loud, corpus, tmp_path):
    with pytest.raises(SpecError, match="names no linear layer"):
        pack(stage(**({"ignore": ["lm_head"]} | args)), loud, tmp_path, corpus=corpus)


@pytest.mark.parametrize(
    "args",
    [
        {"bits": 5},
        {"group": 0},
        {"damping": 0},
        {"tokens": 8, "sequence": 9},
        {"corpus": "x"},
        {"ignore": "lm_head"},
        {"overrides": {"down_proj": {"bits": 5}}},
        {"overrides": {"down_proj": {"damping": 0.1}}},
        {"overrides": {"down_proj": "kept"}},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeGptq(**args)


def test_the_corpus_is_asked_for_by_name():
    assert QuantizeGptq().needs == (Need(name="corpus", source="docstrings:default"),)
