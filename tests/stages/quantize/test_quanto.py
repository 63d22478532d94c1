"""Quanto: what its files hold, against a decoder and rounding written from their descriptions."""

import numpy as np
import pytest

from harness.errors import CorruptArtifact, ModelError, Unsupported
from harness.interfaces import Artifact
from harness.spec import Need
from harness.stages.quantize.quanto import QuantizeQuanto
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.slow_references import inputs_of, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.native_world import (
    LAYER,
    computed_weight,
    decode_quanto,
    handmade,
    output_difference,
    proved,
)
from tests.stages.quantize.packed_world import e4m3, pack, reading_here, reopened, rewrite, tensors
from tests.tiny import tiny_llama

FIRST = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")]
MIXED = {"down_proj": {"weights": "int4", "group": 128}, "model.layers.1.self_attn.*": "keep"}
WATCHED = {"activations": "int8", "tokens": TOKENS, "sequence": SEQUENCE}


def said(weights: str, group: int | None = None, activations: str | None = None) -> dict:
    layer = {"weights": weights, "group_size": group, "activations": activations}
    return {"quant_method": "quanto", "layers": {LAYER: layer}}


def whole(kind=np.int8) -> dict[str, np.ndarray]:
    """Tensors of 8 x 32 weights in 8 bits."""
    return {"weight._data": np.zeros((8, 32), kind), "weight._scale": np.ones((8, 1), np.float16)}


def packed_parts(lines: int, width: int = 16, groups: int = 16) -> dict[str, np.ndarray]:
    """Tensors of 8 x 32 weights in groups, 16 of them unless told otherwise."""
    half = {name: np.ones((groups, 1), np.float16) for name in ("weight._scale", "weight._shift")}
    return {"weight._data._data": np.zeros((lines, width), np.uint8), "weight_shape": np.array([8, 32]), **half}


@pytest.mark.parametrize(("weights", "bits", "lines"), [("int4", 4, 8), ("int2", 2, 4)])
def test_bits_are_read_from_shapes(weights, bits, lines, tmp_path):
    proof = proved(handmade(tmp_path, packed_parts(lines), said(weights, 16)), (8, 32))
    (fact,) = proof.quantized
    assert (fact.bits, fact.group, fact.code_bytes) == (bits, 16, 256 * bits // 8)
    assert (fact.scale_bytes, fact.zero_bytes, fact.other_bytes) == (32, 32, 16)


def test_eight_bits_have_a_scale_a_row_and_say_how_inputs_are_rounded(tmp_path):
    stored = {**whole(), "input_scale": np.ones((), np.float16)}
    (fact,) = proved(handmade(tmp_path, stored, said("int8", activations="int8")), (8, 32)).quantized
    assert (fact.bits, fact.storage, fact.sharing) == (8, "I8", "whole row")
    assert (fact.activations, fact.other_bytes) == ("8-bit int per tensor, static", 2)


@pytest.mark.parametrize(
    ("stored", "claimed", "found"),
    [
        (packed_parts(8), said("int2", 16), "4 bits a weight are stored"),
        (packed_parts(8), said("int4", 32), "16 columns share a scale"),
        (packed_parts(7), said("int4", 16), "no whole bits"),
        (packed_parts(8, groups=15), said("int4", 16), "do not belong"),
        (whole(np.uint8), said("int8"), "stored as U8"),
        (whole(), said("float8"), "stored as I8"),
        (whole(), said("int4"), "is missing"),
        (whole(), {"quant_method": "quanto", "layers": {}}, "its tensors are packed"),
        (packed_parts(8), {"quant_method": "quanto", "layers": {}}, "its tensors are packed"),
    ],
)
def test_tensors_that_are_not_what_is_declared_are_refused(stored, claimed, found, tmp_path):
    with pytest.raises(ModelError, match=found):
        proved(handmade(tmp_path, stored, claimed), (8, 32))


@pytest.mark.parametrize(
    "args",
    [
        {"weights": "int3"},
        {"weights": "int4", "group": 0},
        {"group": 64},
        {"activations": "float8"},
        {"activations": "int8", "tokens": 8, "sequence": 9},
        {"overrides": {"down_proj": {"weights": "int3"}}},
        {"overrides": {"down_proj": {"activations": "int8"}}},
        {"weights": "int4", "group": 64, "overrides": {"down_proj": {"weights": "int8"}}},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeQuanto(**args)


def test_quanto_is_a_proper_plugin_that_reads_text_for_activations_alone():
    check_plugin("stages", QuantizeQuanto)
    assert QuantizeQuanto().needs == ()
    assert QuantizeQuanto(activations="int8").needs == (Need(name="corpus", source="docstrings:default"),)
    assert QuantizeQuanto(activations="int8", data_free=True).needs == ()


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory):
    pytest.importorskip("optimum.quanto")
    asked = {
        "int8": QuantizeQuanto(),
        "float8": QuantizeQuanto(weights="float8"),
        "int4": QuantizeQuanto(weights="int4", group=32),
        "int2": QuantizeQuanto(weights="int2", group=32),
        "rows": QuantizeQuanto(weights="int4"),
        "int8 watched": QuantizeQuanto(**WATCHED),
        "int4 watched": QuantizeQuanto(weights="int4", group=32, **WATCHED),
    }
    with reading_here():
        return {
            name: pack(stage, loud, tmp_path_factory.mktemp("quanto"), corpus=corpus) for name, stage in asked.items()
        }


@slow
@pytest.mark.parametrize("which", ["int8", "float8", "int4", "int2", "rows"])
def test_the_runtime_computes_with_what_the_codes_stand_for(which, packed):
    folder = packed[which][0].path
    model = reopened(folder)
    for name in FIRST:
        expected = decode_quanto(folder, name)
        # Code times scale, less the shift: two roundings to float32.
        found = computed_weight(model.get_submodule(name))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@slow
@pytest.mark.parametrize("name", FIRST)
def test_whole_numbers_are_the_nearest(name, packed, loud):
    before = weights_of(loud.path)[f"{name}.weight"]
    scale = np.abs(before).max(axis=1, keepdims=True) / 127
    codes = tensors(packed["int8"][0].path, name)["weight._data"].double().numpy()
    # Where w / s lies between two codes, float32 may choose the other one.
    assert np.abs(codes - before / scale).max() <= 0.5 + 1e-4


@slow
@pytest.mark.parametrize("name", FIRST)
def test_floats_of_eight_bits_are_the_nearest(name, packed, loud):
    before = weights_of(loud.path)[f"{name}.weight"]
    scale = np.abs(before).max(axis=1, keepdims=True) / 448  # the largest e4m3fn
    points = np.array(sorted({e4m3(byte) for byte in range(256) if byte & 0x7F != 0x7F}))
    codes = tensors(packed["float8"][0].path, name)["weight._data"].double().numpy()
    nearest = np.abs((before / scale)[..., None] - points).min(axis=-1)
    assert np.abs(np.abs(codes - before / scale) - nearest).max() < 1e-3


@slow
@pytest.mark.parametrize(("which", "bits"), [("int4", 4), ("int2", 2)])
@pytest.mark.parametrize("name", FIRST)
def test_groups_are_rounded_between_their_smallest_and_largest(name, which, bits, packed, loud):
    weight_GM = weights_of(loud.path)[f"{name}.weight"].reshape(-1, 32)
    low, high = weight_GM.min(axis=1, keepdims=True), weight_GM.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    found = decode_quanto(packed[which][0].path, name).reshape(-1, 32)
    assert (np.abs(found - weight_GM) <= step * (0.5 + 1e-4)).all()


@slow
def test_scales_of_inputs_are_the_running_mean_of_their_largest(packed, loud, corpus):
    """Only the first layer's inputs are known from the model as it was: those that follow pass rounded layers."""
    name = "model.layers.0.self_attn.q_proj"
    blocks_NT = blocks_of(loud, corpus)
    expected = None
    for block_T in blocks_NT:
        largest = np.abs(inputs_of(load(loud.path), [name], block_T[None])[name]).max() / 127
        expected = largest if expected is None else 0.9 * expected + 0.1 * largest
    for which in ("int8 watched", "int4 watched"):
        found = float(tensors(packed[which][0].path, name)["input_scale"])
        assert found == pytest.approx(expected, rel=1e-5)


@slow
@pytest.mark.parametrize("which", ["int8 watched", "int4 watched"])
def test_inputs_are_rounded_by_their_scale(which, packed):
    """A layer gives for x what its weights give for s * clip(round(x / s), -128, 127)."""
    import torch

    folder = packed[which][0].path
    layer = reopened(folder).get_submodule(FIRST[0])
    scale = float(tensors(folder, FIRST[0])["input_scale"])
    # Inputs beyond the range too, and none near the middle between two steps.
    steps_NC = np.random.default_rng(0).integers(-150, 150, (4, layer.in_features)) + 0.25
    with torch.inference_mode():
        found = layer(torch.tensor(steps_NC * scale, dtype=torch.float32)).double().numpy()
    expected = np.clip(np.round(steps_NC), -128, 127) * scale @ decode_quanto(folder, FIRST[0]).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@slow
def test_more_bits_move_the_output_less_and_rounded_inputs_more(packed, loud):
    before = load(loud.path)
    moved = {name: output_difference(reopened(out.path), before) for name, (out, _) in packed.items()}
    assert moved["int8"] < moved["float8"] < moved["int4"] < moved["int2"]
    assert moved["int8"] < moved["int8 watched"]


@slow
def test_the_report_proves_what_was_stored(packed):
    report = packed["int8 watched"][1]
    assert report.notes["coverage"]["layers"] == {"quanto-int8 8 bits, whole row": 14}
    assert report.notes["coverage"]["activations"] == ["8-bit int per tensor, static"]
    assert report.notes["calibration"] == {"text": "corpus", "blocks": 8, "sequence": SEQUENCE, "seed": 0}
    assert report.tokens == TOKENS
    assert packed["int2"][1].notes["coverage"]["layers"] == {"quanto-int2 2 bits, group 32": 14}
    # 2 bits for a code, and two floats of 32 bits for 32 codes; two 64-bit integers for each of 14 shapes.
    assert packed["int2"][1].notes["coverage"]["bits_per_quantized_weight"] == pytest.approx(4 + 14 * 128 / 122880)


@slow
def test_weights_stay_packed_in_memory_and_are_written_out_unless_inputs_are_integers_too(packed):
    from harness.runtimes._hf_identity import identify
    from harness.runtimes._hf_load import load_tokenizer

    for which, kind, count in (("int4", "uint8", 61440), ("int8", "int8", 122880), ("float8", "float8_e4m3fn", 122880)):
        folder = packed[which][0].path
        identity = identify(reopened(folder), load_tokenizer(folder), folder)
        # In float32; the products of bfloat16 or of rounded inputs with int8 have kernels of their own.
        assert identity.unpacked
        assert identity.kernel.endswith("QuantoLinear")
        assert identity.tensor_types[kind] == count
    watched = packed["int8 watched"][0].path
    assert not identify(reopened(watched), load_tokenizer(watched), watched).unpacked


@slow
def test_a_fresh_process_reads_mixed_layers_and_the_same_seed_gives_the_same_bytes(loud, corpus, tmp_path):
    stage = QuantizeQuanto(overrides=MIXED, **WATCHED)
    first, report = pack(stage, loud, tmp_path / "first", corpus=corpus)
    with reading_here():
        second, _ = pack(stage, loud, tmp_path / "second", corpus=corpus)
    file = "model.safetensors"
    assert (first.path / file).read_bytes() == (second.path / file).read_bytes()
    assert report.notes["reload_difference"] < 1e-4
    assert report.notes["coverage"]["layers"] == {
        "quanto-int4 4 bits, group 128": 2,
        "quanto-int8 8 bits, whole row": 8,
    }
    before = tensors(loud.path)
    for part in "qkvo":
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        assert tensors(first.path)[name].equal(before[name])
    # 64 rows of 256 columns are 128 groups, two codes a byte.
    assert tensors(first.path, "model.layers.0.mlp.down_proj")["weight._data._data"].shape == (64, 128)


@slow
@pytest.mark.parametrize("args", [{}, WATCHED, {"weights": "int4", "group": 128}])
def test_bfloat16_models_run_on_the_kernels_for_packed_weights(args, corpus, tmp_path):
    """Codes that lie in a mapped file on an odd address end the process in one of them."""
    import torch

    folder = tiny_llama(tmp_path / "model", hidden=128)
    load(folder).to(torch.bfloat16).save_pretrained(folder)
    with reading_here():
        out, report = pack(QuantizeQuanto(**args), artifact(folder, "hf"), tmp_path / "out", corpus=corpus)
    assert report.notes["reload_difference"] <= 3e-2
    # Logits that have nothing to do with each other differ by the square root of 2.
    assert output_difference(reopened(out.path), load(folder).to(torch.bfloat16)) < 0.7


@slow
@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop(f"{FIRST[0]}.input_scale"),
        lambda stored: stored.update({f"{FIRST[0]}.output_scale": stored[f"{FIRST[0]}.input_scale"].clone()}),
        lambda stored: stored.update({f"{FIRST[0]}.weight._scale": stored[f"{FIRST[0]}.weight._scale"][:-1].clone()}),
    ],
)
def test_a_tensor_that_is_lost_added_or_cut_is_refused_on_opening(change, packed, tmp_path):
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(packed["int8 watched"][0].path, folder)
    rewrite(folder, change)
    with pytest.raises(CorruptArtifact):
        reopened(folder)


def test_groups_that_do_not_divide_or_fill_no_bytes_are_refused(loud: Artifact, tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(Unsupported, match="64 columns, which groups of 48 do not divide"):
        pack(QuantizeQuanto(weights="int4", group=48), loud, tmp_path / "group")
    with pytest.raises(Unsupported, match="is the embedding too"):
        pack(QuantizeQuanto(ignore=[]), loud, tmp_path / "head")
