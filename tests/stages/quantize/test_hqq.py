"""HQQ: what its files hold, against a decoder and a solver written from their descriptions."""

import numpy as np
import pytest

from harness.errors import CorruptArtifact, ModelError, Unsupported
from harness.stages.quantize.hqq import QuantizeHqq
from harness.testing import check_plugin
from tests.stages.prune.slow_references import weights_of
from tests.stages.prune.sparse_world import load
from tests.stages.quantize.native_world import (
    LAYER,
    computed_weight,
    decode_hqq,
    handmade,
    output_difference,
    proved,
)
from tests.stages.quantize.packed_world import pack, reading_here, reopened, rewrite, tensors

BITS = (8, 4, 3, 2)
GROUP = 32
FIRST = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")]
MIXED = {"model.layers.1.mlp.*": "keep", "down_proj": {"bits": 8, "group": None}, "v_proj": {"bits": 3, "group": 64}}


def said(bits: int, group: int, axis: int = 1) -> dict:
    return {"quant_method": "hqq", "layers": {LAYER: {"bits": bits, "group_size": group, "axis": axis}}}


def parts(words: tuple[int, int], kind=np.uint8, scales: tuple[int, int] = (16, 1)) -> dict[str, np.ndarray]:
    """Tensors of 8 x 32 weights, in groups of 16 unless told otherwise."""
    half = {name: np.ones(scales, np.float16) for name in ("scale", "zero")}
    return {"W_q": np.zeros(words, kind), "weight_shape": np.array([8, 32]), **half}


@pytest.mark.parametrize(("bits", "words", "code_bytes"), [(8, 16, 256), (4, 8, 128), (2, 4, 64), (1, 2, 32)])
def test_bits_are_read_from_shapes(bits, words, code_bytes, tmp_path):
    proof = proved(handmade(tmp_path, parts((words, 16)), said(bits, 16)), (8, 32))
    (fact,) = proof.quantized
    assert (fact.bits, fact.rows, fact.columns, fact.group, fact.code_bytes) == (bits, 8, 32, 16, code_bytes)
    # 16 groups with a scale and a zero point of 16 bits each, and two 64-bit integers for the shape.
    assert (fact.scale_bytes, fact.zero_bytes, fact.other_bytes) == (32, 32, 16)


def test_three_bits_are_named_three_and_cost_what_they_cost(tmp_path):
    # 16 lines of codes fill two words of ten codes each, the second one not to the end: 2 x 16 words of 4 bytes.
    proof = proved(handmade(tmp_path, parts((2, 16), np.int32), said(3, 16)), (8, 32))
    assert (proof.quantized[0].bits, proof.quantized[0].code_bytes) == (3, 128)
    assert proof.bits_per_quantized_weight == 8 * (128 + 32 + 32 + 16) / 256


def test_groups_across_rows_are_no_columns_of_a_row(tmp_path):
    # Axis 0: 16 lines, one for each place in a group, and 16 groups.
    proof = proved(handmade(tmp_path, parts((8, 16), scales=(1, 16)), said(4, 16, axis=0)), (8, 32))
    assert (proof.quantized[0].bits, proof.quantized[0].group, proof.quantized[0].sharing) == (4, None, "block")


@pytest.mark.parametrize(
    ("stored", "claimed", "found"),
    [
        (parts((8, 16)), said(8, 16), "4 bits a weight are stored"),
        (parts((8, 16)), said(4, 32), "16 columns share a scale"),
        (parts((7, 16)), said(4, 16), "no whole bits"),
        (parts((2, 16), np.int16), said(3, 16), "no whole bits"),
        (parts((8, 16), scales=(15, 1)), said(4, 16), "do not belong"),
        ({k: v for k, v in parts((8, 16)).items() if k != "zero"}, said(4, 16), "zero is missing"),
        (parts((8, 16)), {"quant_method": "hqq", "layers": {}}, "its tensors are packed"),
    ],
)
def test_tensors_that_are_not_what_is_declared_are_refused(stored, claimed, found, tmp_path):
    with pytest.raises(ModelError, match=found):
        proved(handmade(tmp_path, stored, claimed), (8, 32))


def test_a_matrix_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ModelError, match="the layer has 16 x 16"):
        proved(handmade(tmp_path, parts((8, 16)), said(4, 16)), (16, 16))


@pytest.mark.parametrize(
    "args",
    [
        {"bits": 5},
        {"group": 12},
        {"group": 0},
        {"axis": 2},
        {"ignore": "lm_head"},
        {"overrides": {"down_proj": {"bits": 6}}},
        {"overrides": {"down_proj": {"tokens": 6}}},
    ],
)
def test_arguments_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeHqq(**args)


def test_hqq_is_a_proper_plugin_that_needs_no_text():
    check_plugin("stages", QuantizeHqq)
    assert QuantizeHqq().needs == ()


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(loud, tmp_path_factory):
    pytest.importorskip("hqq")
    asked = {str(bits): QuantizeHqq(bits=bits, group=GROUP) for bits in BITS}
    asked |= {f"{bits} wide": QuantizeHqq(bits=bits) for bits in (4, 3, 2)}
    asked["mixed"] = QuantizeHqq(group=GROUP, overrides=MIXED)
    asked["axis 0"] = QuantizeHqq(group=64, axis=0)
    asked["columns"] = QuantizeHqq(bits=3, group=None, axis=0)
    with reading_here():
        return {name: pack(stage, loud, tmp_path_factory.mktemp("hqq")) for name, stage in asked.items()}


@slow
@pytest.mark.parametrize(
    ("which", "bits", "axis"),
    [("8", 8, 1), ("4", 4, 1), ("3", 3, 1), ("2", 2, 1), ("axis 0", 4, 0), ("columns", 3, 0)],
)
def test_the_runtime_computes_with_what_the_codes_stand_for(which, bits, axis, packed):
    folder = packed[which][0].path
    model = reopened(folder)
    for name in FIRST:
        expected = decode_hqq(folder, name, bits=bits, axis=axis)
        # Code less zero point, and that times the scale: two roundings to float32, of numbers up to the largest code.
        found = computed_weight(model.get_submodule(name))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def half_quadratic(weight_GM: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of groups, one a line: the alternation of the authors' text, in float64.

    e = shrink(w - w', beta) with p = 0.7 and z = mean(q - (w - e) / s), until the mean error no longer falls. The step
    s is that of the range; at 4 bits the search starts from a whole zero point.
    """
    low, high = weight_GM.min(axis=1, keepdims=True), weight_GM.max(axis=1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    zero = -low / scale
    zero = np.round(zero) if bits == 4 else zero
    beta, best = 10.0, np.inf
    for _ in range(20):
        codes = np.clip(np.round(weight_GM / scale + zero), 0, 2**bits - 1)
        error = weight_GM - (codes - zero) * scale
        size = np.maximum(np.abs(error), 1e-300)
        shrunk = np.sign(error) * np.maximum(size - size ** (0.7 - 1) / beta, 0)
        zero = (codes - (weight_GM - shrunk) / scale).mean(axis=1, keepdims=True)
        if np.abs(error).mean() >= best:
            break
        best = np.abs(error).mean()
    return scale, zero


@slow
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("name", FIRST)
def test_the_zero_points_are_those_of_half_quadratic_splitting(name, bits, packed, loud):
    before = weights_of(loud.path)[f"{name}.weight"].reshape(-1, GROUP)
    scale, zero = half_quadratic(before, bits)
    stored = tensors(packed[str(bits)][0].path, name)
    np.testing.assert_allclose(stored["scale"].double().numpy(), scale, rtol=1e-5)
    # A weight between two codes may fall on either side in float32, which moves the mean of its group.
    same = np.abs(stored["zero"].double().numpy() - zero) < 1e-3
    assert same.mean() > 0.95


def lost(weight_RC: np.ndarray, found_RC: np.ndarray, bits: int, group: int, *, power: float) -> tuple[float, float]:
    """The sum of |error|^power of what was found, and of plain rounding between a group's smallest and largest."""
    weight_GM = weight_RC.reshape(-1, group)
    low, high = weight_GM.min(axis=1, keepdims=True), weight_GM.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    plain_GM = np.round((weight_GM - low) / step) * step + low
    errors = (found_RC.reshape(-1, group) - weight_GM, plain_GM - weight_GM)
    return tuple(float((np.abs(error) ** power).sum()) for error in errors)


@slow
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize(
    ("which", "group", "power"),
    [
        (" wide", 64, 0.7),  # the aim of the method, in the groups that its authors use
        (" wide", 64, 2),
        ("", GROUP, 2),  # in groups of 32 and 4 bits, |error|^0.7 of normally distributed weights is not smaller
    ],
)
def test_less_error_is_left_than_by_plain_rounding(which, group, power, bits, packed, loud):
    folder = packed[f"{bits}{which}"][0].path
    sums = [
        lost(before, decode_hqq(folder, name.removesuffix(".weight"), bits=bits), bits, group, power=power)
        for name, before in weights_of(loud.path).items()
        if name.endswith("proj.weight")
    ]
    assert len(sums) == 14
    assert sum(hqq for hqq, _ in sums) < sum(plain for _, plain in sums)


@slow
def test_more_bits_move_the_output_less(packed, loud):
    before = load(loud.path)
    moved = [output_difference(reopened(packed[str(bits)][0].path), before) for bits in BITS]
    assert moved == sorted(moved)
    assert moved[0] < 0.1


@slow
def test_overrides_change_bits_and_keep_layers_bit_for_bit(packed, loud):
    folder, before = packed["mixed"][0].path, tensors(loud.path)
    kept = [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    for name in (*kept, "model.embed_tokens.weight", "model.norm.weight"):
        assert tensors(folder)[name].equal(before[name])
    down = tensors(folder, "model.layers.0.mlp.down_proj")
    # 64 rows of 256 columns: a byte each, and a scale a row.
    assert (down["W_q"].shape, down["scale"].shape) == ((64, 256), (64, 1))
    # 32 rows of 64 columns, groups of 64: 32 lines in 4 words of ten 3-bit codes.
    assert tensors(folder, "model.layers.0.self_attn.v_proj")["W_q"].shape == (4, 64)
    notes = packed["mixed"][1].notes
    assert notes["coverage"]["layers"] == {
        "hqq 3 bits, whole row": 2,
        "hqq 4 bits, group 32": 14 - 2 - 1 - 3,
        "hqq 8 bits, whole row": 1,
    }
    assert notes["coverage"]["layers_left_plain"] == 3
    # 4 words of 32 bits for 32 lines.
    assert notes["stored_code_bits"] == {"3": 4.0, "4": 4.0, "8": 8.0}


@slow
def test_the_same_input_gives_the_same_bytes_and_a_fresh_process_reads_them(packed, loud, tmp_path):
    again, report = pack(QuantizeHqq(bits=3, group=GROUP), loud, tmp_path)
    file = "model.safetensors"
    assert (again.path / file).read_bytes() == (packed["3"][0].path / file).read_bytes()
    assert report.notes["reload_difference"] < 1e-6


@slow
def test_weights_stay_packed_in_memory_and_are_written_out_to_be_multiplied(packed):
    from harness.runtimes._hf_identity import identify
    from harness.runtimes._hf_load import load_tokenizer

    folder = packed["4"][0].path
    identity = identify(reopened(folder), load_tokenizer(folder), folder)
    assert identity.unpacked  # in every pass
    assert identity.kernel.endswith("HqqLinear")
    # 122880 weights in linear layers, two codes a byte; a scale and a zero point for 32 of them; the rest as it was.
    assert identity.tensor_types == {"float32": 2 * 122880 // 32 + 384 * 64 + 5 * 64, "uint8": 122880 // 2}
    assert identity.parameters == 147776


@slow
@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop(f"{FIRST[0]}.zero"),
        lambda stored: stored.update({f"{FIRST[0]}.more": stored["model.norm.weight"].clone()}),
        lambda stored: stored.update({f"{FIRST[0]}.W_q": stored[f"{FIRST[0]}.W_q"][:-1].clone()}),
    ],
)
def test_a_tensor_that_is_lost_added_or_cut_is_refused_on_opening(change, loud, tmp_path):
    with reading_here():
        out, _ = pack(QuantizeHqq(group=GROUP), loud, tmp_path)
    rewrite(out.path, change)
    with pytest.raises(CorruptArtifact):
        reopened(out.path)


def test_codes_that_fill_no_whole_bytes_are_refused(loud, tmp_path):
    pytest.importorskip("torch")
    # k_proj has 32 x 64 = 2048 weights, which are not even one group of 4096.
    with pytest.raises(Unsupported, match="do not fill whole bytes"):
        pack(QuantizeHqq(group=4096, axis=0), loud, tmp_path)


def test_groups_that_do_not_divide_and_a_tied_head_are_refused(loud, tmp_path):
    with pytest.raises(Unsupported, match="64 columns, which groups of 48 do not divide"):
        pack(QuantizeHqq(group=48), loud, tmp_path / "group")
    with pytest.raises(Unsupported, match="is the embedding too"):
        pack(QuantizeHqq(ignore=[]), loud, tmp_path / "head")
