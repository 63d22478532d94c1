"""torchao's kinds against the formats' definitions: codes decoded by hand, and forward passes written out in NumPy.

Shapes: R rows, C columns, G groups a row, N positions.
"""

import json

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.proof.coverage import prove
from harness.stages.quantize.proof.declared import Claim, read_declaration
from harness.stages.quantize.proof.layouts import read_packed
from harness.stages.quantize.torchao import KINDS, QuantizeTorchao
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.quantize.packed_world import decode_bytes, e2m1, e4m3, pack, reading_here, reopened, tensors
from tests.stages.quantize.test_coverage import MODEL, folder
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
LAYER = "model.layers.0.mlp.up_proj"  # 256 x 64
E4M3 = [e4m3(byte) for byte in range(256)]
PACKED = {
    "int8-weight-only": {},
    "int8-dynamic": {"kind": "int8-dynamic"},
    "int8-dynamic-int4": {"kind": "int8-dynamic-int4", "group": 32, "symmetric": False},
    "8 bits": {"kind": "intx-weight-only", "bits": 8, "group": 32},
    "4 bits": {"kind": "intx-weight-only", "bits": 4, "group": 32},
    "2 bits": {"kind": "intx-weight-only", "bits": 2, "group": 32},
    "int4-cpu": {"kind": "int4-cpu", "group": 32},
    "fp8-weight-only": {"kind": "fp8-weight-only"},
    "mxfp8": {"kind": "mxfp8"},
    "mxfp4": {"kind": "mxfp4"},
    "nvfp4-weight-only": {"kind": "nvfp4-weight-only"},
    "mixed": {
        "kind": "intx-weight-only",
        "bits": 3,
        "group": 32,
        "symmetric": False,
        "overrides": {
            "down_proj": {"bits": 6, "group": None},
            "model.layers.1.self_attn.*": "keep",
            "gate_proj": {"kind": "int8-dynamic", "bits": None, "group": None, "symmetric": True},
        },
    },
}


def test_torchao_is_a_proper_plugin():
    check_plugin("stages", QuantizeTorchao)


@pytest.mark.parametrize(
    "args",
    [
        {"kind": "int5"},
        {"kind": "intx-weight-only"},
        {"kind": "intx-weight-only", "bits": 9},
        {"bits": 4},
        {"kind": "int4-weight-only"},
        {"kind": "int4-cpu", "group": 48},
        {"kind": "int8-dynamic", "group": 32},
        {"kind": "mxfp4", "group": 16},
        {"group": 0},
        {"symmetric": False},
        {"overrides": {"down_proj": {"bits": 4}}},
        {"overrides": {"down_proj": {"kind": "int4-cpu", "group": 32}}},
        {"overrides": {"down_proj": {"damping": 1}}},
        {"ignore": "lm_head"},
    ],
)
def test_arguments_that_no_kind_takes_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeTorchao(**args)


def test_no_kind_asks_for_text():
    assert not any(QuantizeTorchao(**args).needs for args in PACKED.values())


def _config(name: str, **data) -> dict:
    return {"_type": name, "_version": 2, "_data": data}


def _declared(said: dict, **others) -> dict:
    return {"quant_method": "torchao", "quant_type": {"default": said}} | others


GROUP32 = _config("PerGroup", group_size=32)
INTX = _config(
    "IntxWeightOnlyConfig",
    weight_dtype={"_type": "torch.dtype", "_data": "int4"},
    granularity=GROUP32,
    intx_packing_format={"_type": "IntxPackingFormat", "_data": "UNPACKED_TO_INT8"},
)
INT8 = _config("Int8WeightOnlyConfig", granularity=_config("PerRow", dim=-1))
INT4 = _config("Int4WeightOnlyConfig", group_size=32, int4_packing_format={"_type": "F", "_data": "PLAIN"})
MXFP4 = _config(
    "MXDynamicActivationMXWeightConfig",
    block_size=32,
    weight_dtype={"_type": "torch.dtype", "_data": "float4_e2m1fn_x2"},
)
HEAD_KEPT = {"modules_to_not_convert": ["head"]}


def _parts(**given) -> dict:
    return {f"layer._weight_{name}": stored for name, stored in given.items()}


# A layer of 64 x 128: tensors and what is declared; then layout, bits, group, bytes of codes, scales and zero points.
STORED = {
    "int8": (
        _parts(qdata=((64, 128), torch.int8), scale=((64, 1), torch.float32), zero_point=((64, 1), torch.int8)),
        INT8,
        ("torchao-int8", 8, None, 8192, 256, 64),
    ),
    # Declared as 4 bits, stored in 8.
    "intx": (
        _parts(qdata=((64, 128), torch.int8), scale=((64, 4), torch.bfloat16), zero_point=((64, 4), torch.int8)),
        INTX,
        ("torchao-int8", 8, 32, 8192, 512, 256),
    ),
    "int4": (
        _parts(qdata=((64, 64), torch.int8), scale=((4, 64), torch.bfloat16), zero_point=((4, 64), torch.bfloat16)),
        INT4,
        ("torchao-int4", 4, 32, 4096, 512, 512),
    ),
    "fp8": (
        _parts(qdata=((64, 128), torch.float8_e4m3fn), scale=((64, 1), torch.float32)),
        _config("Float8WeightOnlyConfig", granularity=_config("PerRow", dim=-1)),
        ("torchao-float8", 8, None, 8192, 256, 0),
    ),
    # One tile holds 128 rows by 4 scales, stored as 32 x 16: half of it is padding here.
    "mxfp4": (
        _parts(qdata=((64, 64), torch.uint8), scale=((32, 16), torch.float8_e8m0fnu)),
        MXFP4,
        ("torchao-mxfp4", 4, 32, 4096, 512, 0),
    ),
    # 8 scales a row are two tiles.
    "nvfp4": (
        _parts(
            qdata=((64, 64), torch.uint8),
            scale=((32, 32), torch.float8_e4m3fn),
            per_tensor_scale=((), torch.float32),
        ),
        _config("NVFP4WeightOnlyConfig"),
        ("torchao-nvfp4", 4, 16, 4096, 1028, 0),
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_bits_groups_and_bytes_are_what_the_tensors_say(name, tmp_path):
    parts, said, expected = STORED[name]
    (fact,) = prove(folder(tmp_path, parts, _declared(said, **HEAD_KEPT)), MODEL).quantized
    found = (fact.layout, fact.bits, fact.group, fact.code_bytes, fact.scale_bytes, fact.zero_bytes)
    assert found == expected
    assert (fact.rows, fact.columns, fact.other_bytes) == (64, 128, 0)


def test_the_form_of_this_package_says_group_by_layer(tmp_path):
    parts = _parts(qdata=((64, 64), torch.uint8), scale=((64, 4), torch.bfloat16), zero_point=((64, 4), torch.bfloat16))
    config = {"quant_method": "torchao-int4-cpu", "bits": 4, "layers": {"layer": 32}}
    proof = prove(folder(tmp_path, parts, config), MODEL)
    # 4 bits, and 2 x 16 for every 32 weights.
    assert proof.bits_per_quantized_weight == 5


@pytest.mark.parametrize(
    ("parts", "said", "complaint"),
    [
        (STORED["int8"][0], _config("FqnToConfig", fqn_to_config={"layer": None}), "left as it is"),
        (STORED["int4"][0], INT8, r"64 x 64 weights|do not divide"),
        (STORED["int8"][0], INTX, "128 columns share a scale, and the configuration declares 32"),
        (STORED["fp8"][0], INT8, "stored as F8_E4M3"),
        ({**STORED["mxfp4"][0], "layer._weight_scale": ((32, 32), torch.float8_e8m0fnu)}, MXFP4, "scales lie as"),
        ({"layer._weight_qdata": ((64, 128), torch.int8)}, INT8, "_weight_scale is missing"),
    ],
)
def test_tensors_that_are_not_what_is_declared_are_refused(parts, said, complaint, tmp_path):
    with pytest.raises(ModelError, match=complaint):
        prove(folder(tmp_path, parts, _declared(said, **HEAD_KEPT)), MODEL)


def test_exact_names_come_before_patterns(tmp_path):
    rules = {"re:(.*\\.)?(up|down)": INT8, "a.up": INTX, "b.up": None}
    config = _declared(_config("FqnToConfig", fqn_to_config=rules, module_fqn_to_config=rules))
    declaration = read_declaration(folder(tmp_path, {}, config))
    assert [declaration.claim(module) for module in ("a.up", "b.up", "a.down", "a.other")] == [
        Claim("torchao-int8", 8, 32),
        None,
        Claim("torchao-int8", 8, None),
        None,
    ]


@pytest.mark.parametrize(
    "said",
    [
        _config("GGUFWeightOnlyConfig"),
        INT4 | {"_data": {"group_size": 32, "int4_packing_format": {"_type": "F", "_data": "PRESHUFFLED"}}},
    ],
)
def test_a_layout_that_is_not_known_is_not_guessed(said, tmp_path):
    with pytest.raises(Unsupported, match="cannot be proved"):
        read_declaration(folder(tmp_path, {}, _declared(said))).claim("layer")


def test_a_layout_wants_a_matrix_of_codes():
    from harness.stages.quantize.proof.headers import Stored

    parts = {"_weight_qdata": Stored("I8", (4, 4, 4)), "_weight_scale": Stored("F32", (4, 1))}
    with pytest.raises(ModelError, match="no matrix"):
        read_packed("layer", "torchao-int8", parts)


# From here on the library itself runs.


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    pytest.importorskip("torchao")
    with reading_here():
        return {
            name: pack(QuantizeTorchao(**args), source, tmp_path_factory.mktemp("packed"))
            for name, args in PACKED.items()
        }


def stored(packed, name: str) -> dict:
    return {part.removeprefix("_weight_"): tensor for part, tensor in tensors(packed[name][0].path, LAYER).items()}


def weight(source: Artifact) -> np.ndarray:
    return tensors(source.path, LAYER)["weight"].double().numpy()


def multiplied(folder) -> np.ndarray:
    """The weight (R, C) that a reopened layer multiplies with: what it makes of the unit vectors."""
    layer = reopened(folder).get_submodule(LAYER)
    with torch.inference_mode():
        return layer(torch.eye(64, dtype=layer.weight.dtype)).double().numpy().T


def spread(values_RG, width: int) -> np.ndarray:
    return np.repeat(values_RG.double().numpy(), width, axis=1)


def integers(parts: dict) -> np.ndarray:
    codes_RC = parts["qdata"].double().numpy()
    width = codes_RC.shape[1] // parts["scale"].shape[1]
    return (codes_RC - spread(parts["zero_point"], width)) * spread(parts["scale"], width)


def untile(tiles, rows: int, groups: int) -> np.ndarray:
    """Scales (R, G) out of tiles of 128 x 4, each as 32 lines of 16: cuBLAS, block scaling factors layout."""
    flat = tiles.flatten()
    across = -(-groups // 4)
    found = np.empty((rows, groups), dtype=flat.dtype)
    for r in range(rows):
        for g in range(groups):
            tile = (r // 128) * across + g // 4
            found[r, g] = flat[tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + g % 4]
    return found


def floats(name: str, parts: dict) -> np.ndarray:
    codes = parts["qdata"]
    if name == "fp8-weight-only":
        return decode_bytes(codes, E4M3) * parts["scale"].double().numpy()
    bytes_RG = untile(parts["scale"].view(torch.uint8).numpy(), 256, 64 // (16 if "nv" in name else 32))
    if name == "nvfp4-weight-only":
        scales = np.array(E4M3)[bytes_RG] * parts["per_tensor_scale"].double().numpy()
        return e2m1(codes.numpy()) * np.repeat(scales, 16, axis=1)
    values = decode_bytes(codes, E4M3) if name == "mxfp8" else e2m1(codes.numpy())
    return values * np.repeat(2.0 ** (bytes_RG.astype(int) - 127), 32, axis=1)


def int4(parts: dict) -> np.ndarray:
    halves = np.stack([parts["qdata"].numpy() & 15, parts["qdata"].numpy() >> 4], axis=-1).reshape(256, 64)
    return (halves.astype(float) - 8) * spread(parts["scale"], 32) + spread(parts["zero_point"], 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-weight-only", "8 bits", "4 bits", "2 bits"])
def test_integer_codes_decoded_by_hand_are_what_the_model_multiplies_with(name, packed):
    expected = integers(stored(packed, name))
    np.testing.assert_allclose(multiplied(packed[name][0].path), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8-weight-only", "nvfp4-weight-only", "mxfp8", "mxfp4"])
def test_float_codes_decoded_by_hand_are_what_the_model_multiplies_with(name, packed):
    # In mx kinds inputs are rounded too, which leaves ones and zeros as they are, and bfloat16 holds every product.
    np.testing.assert_allclose(multiplied(packed[name][0].path), floats(name, stored(packed, name)), rtol=1e-6)


@pytest.mark.slow
def test_packed_pairs_decoded_by_hand_are_what_the_model_multiplies_with(packed):
    expected = int4(stored(packed, "int4-cpu"))
    np.testing.assert_allclose(multiplied(packed["int4-cpu"][0].path), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("8 bits", 8), ("4 bits", 4), ("2 bits", 2)])
def test_symmetric_weights_go_to_the_nearest_of_their_steps(name, bits, packed, source):
    parts, before = stored(packed, name), weight(source)
    scales = np.abs(before.reshape(256, 2, 32)).max(axis=2) / ((2**bits - 1) / 2)
    np.testing.assert_allclose(parts["scale"].double().numpy(), scales, rtol=1e-6)
    steps = before / np.repeat(scales, 32, axis=1)
    wanted = np.clip(np.round(steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # The library multiplies with the inverse in float32: a weight in the middle may go either way, and the largest of
    # every 32 lies half a step beyond the last code.
    middle = np.abs(steps - np.floor(steps) - 0.5) < 1e-4
    assert (parts["qdata"].numpy() == wanted)[~middle].all()
    assert middle.mean() < 1.1 / 32
    assert np.abs(parts["qdata"].numpy() - steps).max() < 0.5001


@pytest.mark.slow
def test_fp8_weights_go_to_the_nearest_float(packed, source):
    parts, before = stored(packed, "fp8-weight-only"), weight(source)
    scales = np.abs(before).max(axis=1, keepdims=True) / 448
    np.testing.assert_allclose(parts["scale"].double().numpy(), scales, rtol=1e-6)
    finite = np.unique([value for byte, value in enumerate(E4M3) if byte & 0x7F != 0x7F])
    nearest = np.abs((before / scales)[..., None] - finite).min(axis=-1)
    found = np.abs(before / scales - decode_bytes(parts["qdata"], E4M3))
    np.testing.assert_allclose(found, nearest, rtol=1e-4, atol=1e-4)


def inputs(columns: int = 64) -> np.ndarray:
    """Tokens of several sizes whose largest value is positive: on a negative one rounding would meet a tie."""
    drawn = np.random.default_rng(0).normal(size=(24, columns)) * np.linspace(0.1, 8, 24)[:, None]
    drawn[:, 7] = 1.25 * np.abs(drawn).max(axis=1)
    return drawn.astype(np.float32)


def answers(folder, inputs_NC: np.ndarray) -> np.ndarray:
    layer = reopened(folder).get_submodule(LAYER)
    with torch.inference_mode():
        return layer(torch.from_numpy(inputs_NC.astype(np.float32))).double().numpy()


@pytest.mark.slow
def test_int8_dynamic_multiplies_integers_with_a_scale_a_token(packed):
    inputs_NC, parts = inputs(), stored(packed, "int8-dynamic")
    scales_N1 = np.abs(inputs_NC).max(axis=1, keepdims=True) / np.float32(127.5)
    codes_NC = np.clip(np.round(inputs_NC / scales_N1), -128, 127).astype(np.int64)
    products_NR = codes_NC @ parts["qdata"].numpy().astype(np.int64).T
    expected = products_NR * scales_N1.astype(float) * parts["scale"].double().numpy().T
    found = answers(packed["int8-dynamic"][0].path, inputs_NC)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_int8_dynamic_int4_rounds_every_token_between_its_least_and_its_largest(packed):
    inputs_NC, parts = inputs(), stored(packed, "int8-dynamic-int4")
    low, high = np.minimum(inputs_NC.min(axis=1), 0)[:, None], np.maximum(inputs_NC.max(axis=1), 0)[:, None]
    step = (high - low) / np.float32(255)
    zero = np.clip(-128 - np.round(low / step), -128, 127)
    rounded = (np.clip(np.round(inputs_NC / step) + zero, -128, 127) - zero) * step
    expected = rounded.astype(float) @ integers(parts).T
    found = answers(packed["int8-dynamic-int4"][0].path, inputs_NC)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_more_bits_and_finer_scales_move_weights_less(packed, source):
    before = weight(source)
    moved = {name: np.square(multiplied(packed[name][0].path) - before).sum() for name in PACKED if name != "mixed"}
    assert moved["8 bits"] < moved["4 bits"] < moved["2 bits"]
    assert moved["8 bits"] < moved["fp8-weight-only"] < moved["4 bits"]
    assert moved["nvfp4-weight-only"] < moved["mxfp4"] < moved["2 bits"]
    assert moved["mxfp8"] < moved["nvfp4-weight-only"]
    # A zero point of its own lets a group use all 16 values between its least and its largest weight.
    assert moved["int4-cpu"] < moved["4 bits"]


@pytest.mark.slow
def test_more_bits_move_the_models_answers_less(packed, source):
    tokens = torch.arange(3, 80)[None]
    with torch.inference_mode():
        plain, *others = (
            reopened(folder)(tokens).logits.float()
            for folder in (source.path, *(packed[name][0].path for name in ("8 bits", "4 bits", "2 bits")))
        )
    errors = [float((logits - plain).square().mean()) for logits in others]
    assert errors == sorted(errors)


@pytest.mark.slow
def test_overrides_change_kind_and_bits_and_keep_layers_bit_for_bit(packed, source):
    folder, before = packed["mixed"][0].path, tensors(source.path)
    for layer in (0, 1):
        down, gate = (tensors(folder, f"model.layers.{layer}.mlp.{part}_proj") for part in ("down", "gate"))
        assert down["_weight_scale"].shape == (64, 1)  # a whole row
        assert 16 < down["_weight_qdata"].unique().numel() <= 64
        assert gate["_weight_scale"].dtype == torch.float32
        assert gate["_weight_qdata"].unique().numel() > 64
        up = tensors(folder, f"model.layers.{layer}.mlp.up_proj")
        assert (up["_weight_scale"].shape, up["_weight_qdata"].unique().numel()) == ((256, 2), 8)
    kept = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"]
    for name in (*kept, "model.embed_tokens.weight"):
        assert torch.equal(tensors(folder)[name], before[name])
    report = packed["mixed"][1]
    # Down and up of both layers and attention of one; gate of both has whole rows as down has.
    assert report.notes["coverage"]["layers"] == {
        "torchao-int8 8 bits, group 32": 6,
        "torchao-int8 8 bits, whole row": 4,
    }
    assert report.notes["coverage"]["layers_left_plain"] == 4
    assert report.notes["levels"]["intx-weight-only 3 bits, group 32"] == {
        "layers": 6,
        "bits_asked_for": 3,
        "bits_stored": 8,
        "values_allowed": 8,
        "values_used": 8,
    }


@pytest.mark.slow
def test_sizes_are_those_of_what_is_stored(packed):
    bits = {name: run[1].notes["coverage"]["bits_per_quantized_weight"] for name, run in packed.items()}
    # Codes in 8 bits whatever they are called, a float32 and an int8 zero point for 32 weights.
    assert bits["8 bits"] == bits["4 bits"] == bits["2 bits"] == 9.25
    # Two codes in a byte, two float32 for 32 weights.
    assert bits["int4-cpu"] == 6
    # 64 columns are 2 scales of 4 in a tile, 256 columns 8 scales; rows of 32 and 64 are filled up to 128.
    assert 4.25 < bits["mxfp4"] < 5
    label = "torchao stores 4-bit codes in 8 bits each: sizes are those of 8-bit weights"
    assert packed["4 bits"][1].labels == packed["int8-dynamic-int4"][1].labels == [label]
    assert packed["8 bits"][1].labels == packed["int4-cpu"][1].labels == []
    assert packed["mxfp4"][1].labels == ["rounded from float32 to bfloat16 before quantizing"]


@pytest.mark.slow
def test_only_what_multiplies_its_codes_is_timed_as_packed(packed):
    from transformers import AutoTokenizer

    from harness.runtimes._hf_identity import identify

    found = {}
    for name, (run, _) in packed.items():
        identity = identify(reopened(run.path), AutoTokenizer.from_pretrained(run.path), run.path)
        found[name] = identity.unpacked
        if name == "int4-cpu":
            assert identity.kernel.endswith("Linear[Int4OpaqueTensor]")
            assert identity.tensor_types["uint8"] == (147776 - 384 * 64 - 5 * 64) // 2
    assert {name for name, unpacked in found.items() if not unpacked} == {"int8-dynamic", "int4-cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-dynamic", "int4-cpu"])
def test_a_fresh_process_computes_the_same_from_the_same_bytes(name, packed, source, tmp_path):
    pytest.importorskip("torchao")
    again, report = pack(QuantizeTorchao(**PACKED[name]), source, tmp_path)
    assert report.notes["reload_difference"] <= 1e-6
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (packed[name][0].path, again.path))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 bits", "int4-cpu", "int8-dynamic"])
def test_models_in_bfloat16_keep_their_type(name, source, tmp_path):
    pytest.importorskip("torchao")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.bfloat16)
    folder = tmp_path / "bfloat16"
    tiny_llama(folder)
    model.save_pretrained(folder)
    with reading_here():
        out, _ = pack(QuantizeTorchao(**PACKED[name]), artifact(folder, "hf"), tmp_path)
    assert reopened(out.path).dtype == torch.bfloat16
    parts = {part.removeprefix("_weight_"): tensor for part, tensor in tensors(out.path, LAYER).items()}
    expected = int4(parts) if name == "int4-cpu" else integers(parts)
    # 2^-8 a rounding.
    np.testing.assert_allclose(multiplied(out.path), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


@pytest.mark.slow
def test_a_head_of_its_own_is_quantized_where_nothing_says_otherwise(tmp_path):
    pytest.importorskip("torchao")
    untied = artifact(tiny_llama(tmp_path / "model", tie=False), "hf")
    with reading_here():
        for number, (ignore, head) in enumerate((([], "quantized"), (["lm_head"], "own"))):
            _, report = pack(QuantizeTorchao(ignore=ignore), untied, tmp_path / str(number))
            assert report.notes["coverage"]["head"] == head


@pytest.mark.slow
def test_the_configuration_is_one_that_the_library_reads(packed):
    from transformers import TorchAoConfig

    said = json.loads((packed["mixed"][0].path / "config.json").read_text())["quantization_config"]
    rules = TorchAoConfig.from_dict(said).quant_type.fqn_to_config
    assert {type(rule).__name__ for rule in rules.values()} == {
        "IntxWeightOnlyConfig",
        "Int8DynamicActivationInt8WeightConfig",
        "NoneType",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"kind": "int4-weight-only", "group": 32}, "mslk"),
        ({"kind": "fp8-dynamic"}, "compute capability"),
        ({"kind": "nvfp4-dynamic"}, "sm100"),
    ],
)
def test_a_kind_that_cannot_run_here_says_why_and_what_to_do(args, reason, source, tmp_path):
    pytest.importorskip("torchao")
    if torch.cuda.is_available():
        pytest.skip("what a CPU lacks is asked for")
    with pytest.raises(Unsupported, match=reason) as refused:
        pack(QuantizeTorchao(**args), source, tmp_path)
    assert refused.value.remedy


@pytest.mark.slow
def test_a_layer_that_the_library_refuses_is_named():
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig

    from harness.stages.quantize._torchao_tensors import _quantize

    scheme = QuantizeTorchao(kind="nvfp4-weight-only").scheme
    with pytest.raises(Unsupported, match=r"some\.layer: NVFP4 only supports"):
        _quantize(torch.nn.Linear(32, 10), NVFP4WeightOnlyConfig(), "some.layer", scheme)


@pytest.mark.slow
def test_groups_that_do_not_divide_and_names_that_fit_nothing_are_refused(source, tmp_path):
    pytest.importorskip("torchao")
    with pytest.raises(Unsupported, match="do not divide"):
        pack(QuantizeTorchao(group=48), source, tmp_path / "group")
    with pytest.raises(SpecError, match="names no linear layer"):
        pack(QuantizeTorchao(ignore=["head_of_another"]), source, tmp_path / "name")


def test_every_kind_can_be_asked_for():
    for name, kind in KINDS.items():
        bits, group = (4 if kind.bits is None else None), (kind.groups[0] if kind.groups else None)
        assert QuantizeTorchao(kind=name, bits=bits, group=group).scheme["kind"] == name
