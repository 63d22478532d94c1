"""bitsandbytes as stored, against decoders written from the papers; and that looking at such a model changes nothing.

Shapes: R rows, C columns, N positions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, BuildReport, ScoreRequest
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from harness.stages.quantize.bitsandbytes import QuantizeBitsandbytes, _require_rows
from harness.stages.quantize.proof import reloading
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import prove
from harness.stages.quantize.proof.declared import Declaration
from harness.stages.quantize.recipe import Assignment
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.sparse_world import load
from tests.stages.quantize.packed_world import pack, reading_here, reopened, tensors
from tests.stages.quantize.test_coverage import MODEL, folder
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")

# QLoRA, arXiv 2305.14314, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# A sign and three bits: 0 and 1/16, then 2 and 3 times the powers 1, 2 and 4 in the library's order, over 12.
FP4 = [sign * value / 12 for sign in (1, -1) for value in (0, 1 / 16, 8, 12, 4, 6, 2, 3)]
TABLES = {"nf4": NF4, "fp4": FP4}
MODULES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.k_proj", "mlp.down_proj")]


def dynamic_map() -> np.ndarray:
    """The 8-bit dynamic tree of arXiv 1511.04561: a sign, i zeros for a power 10^-i, and the rest a linear fraction.

    A fraction of b bits stands for the middle of one of 2^b equal parts of 0.1 to 1. Beside them there are 0 and 1.
    """
    found = [0.0, 1.0]
    for bits in range(7):
        edges = np.linspace(0.1, 1, 2**bits + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (bits - 6)
        found += [*middles, *-middles]
    return np.sort(found)


def said(stored: dict, kind: str) -> dict:
    return json.loads(bytes(stored[f"weight.quant_state.bitsandbytes__{kind}"].tolist()))


def scales_of(stored: dict, kind: str) -> np.ndarray:
    """The scale of every 64 weights, in float32 as the library counts."""
    absmax = stored["weight.absmax"].numpy()
    if absmax.dtype != np.uint8:
        return absmax
    above = np.repeat(stored["weight.nested_absmax"].numpy(), 256)[: len(absmax)]
    offset = np.float32(said(stored, kind)["nested_offset"])
    return dynamic_map().astype(np.float32)[absmax] * above + offset


def codes_of(stored: dict) -> np.ndarray:
    packed = stored["weight"].numpy().ravel()
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()


def decoded(folder: Path, module: str, kind: str) -> np.ndarray:
    """The weights (R, C) that the stored bytes stand for."""
    stored = tensors(folder, module)
    if kind == "int8":
        return stored["weight"].numpy() * (stored["SCB"].numpy() / 127)[:, None]
    values = np.array(TABLES[kind], dtype=np.float32)[codes_of(stored)]
    return (values * np.repeat(scales_of(stored, kind), 64)).reshape(said(stored, kind)["shape"])


def rounded(weights: np.ndarray):
    return torch.from_numpy(weights.astype(np.float32)).to(torch.bfloat16)


# What needs no library


def test_bitsandbytes_is_a_proper_plugin():
    check_plugin("stages", QuantizeBitsandbytes)


def test_no_text_is_asked_for():
    assert QuantizeBitsandbytes().needs == ()


@pytest.mark.parametrize(
    "args",
    [
        {"kind": "nf8"},
        {"kind": "int8", "double_quant": False},
        {"outlier_threshold": 5.0},
        {"kind": "int8", "outlier_threshold": -1.0},
        {"kind": "int8", "outlier_threshold": float("inf")},
        {"overrides": {"down_proj": {"kind": "fp4"}}},
        {"ignore": "lm_head"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeBitsandbytes(**args)


def configuration(kind: str = "nf4", *, skip: list[str] | None = ("head",), **others) -> dict:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": kind != "int8",
        "load_in_8bit": kind == "int8",
        "bnb_4bit_quant_type": kind,
        "llm_int8_skip_modules": skip if skip is None else list(skip),
        "llm_int8_threshold": 6.0,
    } | others


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        (None, ["lm_head"]),
        ([], []),
        (["model.layers.1"], ["model.layers.1.up_proj"]),
        (["up_proj"], ["model.layers.0.up_proj", "model.layers.1.up_proj"]),
    ],
)
def test_the_list_of_modules_left_alone_is_read_as_transformers_reads_it(skip, kept):
    layers = ["lm_head", "model.layers.0.up_proj", "model.layers.1.up_proj"]
    declared = Declaration("bitsandbytes", configuration(skip=skip))
    assert [layer for layer in layers if declared.claim(layer) is None] == kept


def four_bits(kind: str = "nf4", *, codes: int = 4096, nested: bool = True, shape: str = "[64, 128]") -> dict:
    """The tensors of one layer of 64 x 128 weights: 4096 bytes of codes and 128 scales."""
    written = torch.frombuffer(bytearray(f'{{"shape": {shape}}}'.encode()), dtype=torch.uint8)
    made = {
        "layer.weight": ((codes, 1), torch.uint8),
        "layer.weight.absmax": ((128,), torch.uint8 if nested else torch.float32),
        "layer.weight.quant_map": ((16,), torch.float32),
        f"layer.weight.quant_state.bitsandbytes__{kind}": written,
    }
    above = {
        "layer.weight.nested_absmax": ((1,), torch.float32),
        "layer.weight.nested_quant_map": ((256,), torch.float32),
    }
    return made | above if nested else made


INT8 = {
    "layer.weight": ((64, 128), torch.int8),
    "layer.SCB": ((64,), torch.float32),
    "layer.weight_format": ((), torch.uint8),
}
STATE = len('{"shape": [64, 128]}')
# Tensors, kind; then bits, group, scales' type, and bytes of codes, scales and the rest, by hand.
LAYOUTS = {
    "nf4": (four_bits(), "nf4", (4, 64, "U8", 4096, 128 + 4, 64 + 1024 + STATE)),
    "fp4": (four_bits("fp4"), "fp4", (4, 64, "U8", 4096, 128 + 4, 64 + 1024 + STATE)),
    "single": (four_bits(nested=False), "nf4", (4, 64, "F32", 4096, 512, 64 + STATE)),
    "int8": (INT8, "int8", (8, None, "F32", 8192, 256, 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_byte_of_a_layout_is_counted(name, tmp_path):
    given, kind, (bits, group, scale_type, codes, scales, others) = LAYOUTS[name]
    proof = prove(folder(tmp_path, given, configuration(kind)), MODEL)
    (fact,) = proof.quantized
    assert (fact.rows, fact.columns, fact.bits, fact.group, fact.scale_type) == (64, 128, bits, group, scale_type)
    assert (fact.code_bytes, fact.scale_bytes, fact.zero_bytes, fact.other_bytes) == (codes, scales, 0, others)
    assert fact.sharing == ("whole row" if kind == "int8" else "group 64")
    spared = "8-bit int per token, dynamic, columns that reach 6 not quantized"
    assert fact.activations == (spared if kind == "int8" else None)


LIES = {
    "bytes for 4 bits": (four_bits(codes=8192), configuration(), "8 bits a weight are stored"),
    "another shape": (four_bits(shape="[32, 256]"), configuration(), "the layer has 64 x 128"),
    "no shape": (four_bits(shape="null"), configuration(), "does not tell its shape"),
    "a shape of words": (four_bits(shape='["a", "b"]'), configuration(), "its shape is said to be"),
    "no scales of scales": (
        {name: given for name, given in four_bits().items() if "nested" not in name},
        configuration(),
        "nested_absmax is missing",
    ),
    "fp4 declared as nf4": (four_bits("fp4"), configuration(), "bitsandbytes__nf4 is missing"),
    "int8 declared as nf4": (INT8, configuration(), "weight.absmax is missing"),
    "packed where left out": (four_bits(), configuration(skip=["layer", "head"]), "its tensors are pack"),
    "int8 where left out": (INT8, configuration("int8", skip=["layer", "head"]), "its tensors are pack"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_is_not_what_it_says_fails(lie, tmp_path):
    given, config, message = LIES[lie]
    with pytest.raises(ModelError, match=message):
        prove(folder(tmp_path, given, config), MODEL)


# With the library

STAGES = {
    "nf4": QuantizeBitsandbytes(),
    "single": QuantizeBitsandbytes(double_quant=False),
    "fp4": QuantizeBitsandbytes(kind="fp4"),
    "int8": QuantizeBitsandbytes(kind="int8"),
    "int8 all": QuantizeBitsandbytes(kind="int8", outlier_threshold=0.0),
    "mixed": QuantizeBitsandbytes(ignore=["lm_head", "down_proj"], overrides={"model.layers.1.self_attn.*": "keep"}),
}
KIND = {"nf4": "nf4", "single": "nf4", "fp4": "fp4", "int8": "int8"}


@pytest.fixture(scope="module")
def packed(loud, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    pytest.importorskip("bitsandbytes")
    with reading_here():
        return {
            name: pack(stage, loud, tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, stage in STAGES.items()
        }


def before(loud: Artifact, module: str) -> np.ndarray:
    """The weight that came in, in bfloat16 as the stage reads it."""
    return tensors(loud.path, module)["weight"].to(torch.bfloat16).float().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "single", "fp4"])
def test_the_reloaded_model_computes_with_what_the_bits_stand_for(name, packed):
    path, kind = packed[name][0].path, KIND[name]
    model = reopened(path)
    for module in MODULES:
        expected_RC = decoded(path, module, kind)
        layer = model.get_submodule(module)
        with torch.inference_mode():
            found_RC = layer(torch.eye(expected_RC.shape[1], dtype=torch.bfloat16)).T.float().numpy()
        # The scale, the value, their product and the output are each rounded to 8 bits: 2^-8 four times.
        np.testing.assert_allclose(found_RC, expected_RC, rtol=4 * 2**-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "single", "fp4"])
def test_the_library_unpacks_the_files_to_exactly_these_weights(name, packed):
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    path = packed[name][0].path
    model = AutoModelForCausalLM.from_pretrained(path)
    for module in MODULES:
        weight = model.get_submodule(module).weight
        assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), rounded(decoded(path, module, KIND[name])))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_scales_are_the_largest_magnitudes_and_codes_the_nearest_values(kind, packed, loud):
    name = "single" if kind == "nf4" else "fp4"
    for module in MODULES:
        stored = tensors(packed[name][0].path, module)
        blocks = before(loud, module).reshape(-1, 64)
        peaks = np.abs(blocks).max(axis=1)
        if name == "single":
            np.testing.assert_array_equal(scales_of(stored, kind), peaks)
        # Double quantization comes after the codes were chosen.
        shares = blocks / peaks[:, None]
        table = np.array(TABLES[kind])
        best = np.abs(shares[..., None] - table).min(axis=-1)
        found = np.abs(shares - table[codes_of(stored)].reshape(shares.shape))
        # Where two values are equally near up to the last bits of float32, or of the library's rounded borders.
        assert (found <= best + 1e-4).all()


@pytest.mark.slow
def test_double_quantized_scales_are_near_and_their_table_is_the_papers(packed, loud):
    for module in MODULES:
        stored = tensors(packed["nf4"][0].path, module)
        np.testing.assert_allclose(stored["weight.nested_quant_map"].numpy(), dynamic_map(), atol=1e-6)
        peaks = np.abs(before(loud, module).reshape(-1, 64)).max(axis=1)
        # The widest gap of the table is 0.9 / 64, of the largest distance of a scale from their mean; the library's
        # borders between its values are rounded.
        allowed = 1.01 * 0.9 / 64 / 2 * np.abs(peaks - peaks.mean()).max()
        assert np.abs(scales_of(stored, "nf4") - peaks).max() <= allowed


def llm_int8(inputs_NC, codes_RC: np.ndarray, largest_R: np.ndarray, threshold: float) -> np.ndarray:
    """LLM.int8 (arXiv 2208.07339, section 3) in float64: every product of two integers, but for columns of outliers."""
    inputs_NC = inputs_NC.to(torch.float16).double().numpy()
    outliers_NC = np.abs(inputs_NC) >= threshold if threshold else np.zeros(inputs_NC.shape, bool)
    spared_C = outliers_NC.any(axis=0)
    rest_NC = np.where(outliers_NC, 0, inputs_NC)
    peaks_N = np.abs(rest_NC).max(axis=1)
    rounded_NC = np.round(rest_NC * (127 / peaks_N[:, None]))
    rounded_NC[:, spared_C] = 0
    products_NR = rounded_NC @ codes_RC.astype(float).T * (peaks_N[:, None] / 127) * (largest_R / 127)
    return products_NR + inputs_NC[:, spared_C] @ (codes_RC[:, spared_C] * (largest_R / 127)[:, None]).T


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int8 all"])
def test_int8_computes_what_the_paper_says(name, packed, loud):
    path, threshold = packed[name][0].path, STAGES[name].outlier_threshold
    model = reopened(path)
    drawing = torch.Generator().manual_seed(1)
    for module in MODULES:
        stored = tensors(path, module)
        codes_RC, largest_R = stored["weight"].numpy(), stored["SCB"].numpy()
        weight_RC = before(loud, module)
        np.testing.assert_array_equal(largest_R, np.abs(weight_RC).max(axis=1))
        # The nearest step, or at half a step either.
        assert np.abs(weight_RC * (127 / largest_R[:, None]) - codes_RC).max() < 0.5 + 1e-4
        inputs_NC = torch.randn(5, codes_RC.shape[1], generator=drawing).to(torch.bfloat16)
        inputs_NC[:, 3] *= 20  # a column that goes far beyond the threshold
        with torch.inference_mode():
            found_NR = model.get_submodule(module)(inputs_NC).float().numpy()
        expected_NR = llm_int8(inputs_NC, codes_RC, largest_R, threshold)
        # Outputs, and the spared columns' weights, have 8 bits: 2^-8 of the largest, a few times.
        np.testing.assert_allclose(found_NR, expected_NR, atol=4 * 2**-8 * np.abs(expected_NR).max(), rtol=0)
        errors = [
            llm_int8(inputs_NC, codes_RC, largest_R, t) - inputs_NC.double().numpy() @ weight_RC.T for t in (6, 0)
        ]
        assert np.abs(errors[0]).mean() < 0.5 * np.abs(errors[1]).mean()


@pytest.mark.slow
def test_more_bits_are_nearer_and_normal_quantiles_nearer_than_a_float(packed, loud):
    tokens = torch.arange(3, 60)[None]
    with torch.inference_mode():
        expected = load(loud.path)(tokens).logits
        off = {name: reloading.difference(expected, reopened(packed[name][0].path)(tokens).logits) for name in KIND}
    assert off["int8"] < off["nf4"] < off["fp4"]
    assert off["single"] == pytest.approx(off["nf4"], rel=0.1)


@pytest.mark.slow
def test_only_the_layers_asked_for_are_packed_and_the_rest_is_as_it_was(packed, loud):
    path, report = packed["mixed"][0].path, packed["mixed"][1]
    found, kept = tensors(path), tensors(loud.path)
    plain = [f"model.layers.1.self_attn.{part}_proj" for part in "qkvo"]
    plain += [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    for module in plain:
        assert torch.equal(found[f"{module}.weight"], kept[f"{module}.weight"].to(torch.bfloat16))
    # Of 14 layers six are left: four of attention in the second, and each layer's last projection.
    assert report.notes["coverage"]["layers"] == {"bitsandbytes-nf4 4 bits, group 64": 8}
    assert report.notes["coverage"]["layers_left_plain"] == 6


@pytest.mark.slow
def test_bits_are_those_of_the_papers(packed):
    # Scales cost 8 / 64 + 32 / (64 * 256) = 0.127 bits with double quantization (QLoRA, section 3), else 32 / 64; on
    # the tables, which are the same for any size, 14 small matrices spend more than that.
    weights, matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 256 * 64), 14
    for name, scales, tables in (("nf4", 8 / 64 + 32 / (64 * 256), 64 + 1024 + 160), ("single", 32 / 64, 64 + 78)):
        proof = packed[name][1].notes["coverage"]
        expected = 4 + scales + 8 * tables * matrices / weights
        assert proof["bits_per_quantized_weight"] == pytest.approx(expected, rel=0.01)
        assert proof["share_of_linear"] == 1.0
    # A row of 64 or 256 columns has one 32-bit scale, and a matrix one byte more.
    scales = 2 * (2 * 64 + 2 * 32 + 2 * 256 + 64)
    proof = packed["int8"][1].notes["coverage"]
    assert proof["bits_per_quantized_weight"] == pytest.approx(8 * (weights + 4 * scales + 14) / weights)
    assert packed["nf4"][1].labels == ["rounded from float32 to bfloat16 before quantizing"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "single", "int8"])
def test_looking_at_a_model_that_runs_changes_no_score(name, packed):
    from bitsandbytes.functional import has_avx512bf16

    with Transformers().open(packed[name][0], hardware=Hardware()) as session:
        request = ScoreRequest([0], list(range(3, 40)))
        first = session.score([request])
        identity = session.identity
        assert session.score([request]) == first
    # Elsewhere 4-bit weights are written out in floats.
    assert identity.unpacked == (name != "int8" and not has_avx512bf16())
    assert identity.kernel.endswith("Linear8bitLt" if name == "int8" else "Linear4bit")
    assert identity.parameters == 147776
    # A byte for two weights or for one; nothing else is kept in integers but scales before the first pass.
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 256 * 64)
    assert identity.tensor_types["int8" if name == "int8" else "uint8"] == (weights if name == "int8" else weights // 2)
    # Embedding and norms are 24896 weights of two bytes; scales and tables come on top of the codes.
    codes = weights if name == "int8" else weights // 2
    assert codes + 2 * 24896 < identity.weights_memory_bytes < 1.2 * (codes + 2 * 24896)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_and_a_fresh_process_reads_them(packed, loud, tmp_path):
    again, report = pack(STAGES["nf4"], loud, tmp_path)
    files = [(folder.path / "model.safetensors").read_bytes() for folder in (again, packed["nf4"][0])]
    assert files[0] == files[1]
    assert report.notes["reload_difference"] == 0


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    broken = load(tiny_llama(tmp_path / "model"))
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="not finite"):
        pack(STAGES["nf4"], artifact(tmp_path / "model", "hf"), tmp_path)


@pytest.mark.slow
def test_rows_that_the_kernel_of_this_processor_cannot_take_are_refused():
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("this processor multiplies by matrices of any number of rows")
    model = Architecture({"layer": (40, 64)}, "embed", None, tied=False)
    with pytest.raises(Unsupported, match="40 rows"):
        _require_rows(Assignment(((STAGES["nf4"].scheme, ("layer",)),), ()), model)
