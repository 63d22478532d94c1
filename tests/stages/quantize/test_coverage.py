"""The coverage proof, on folders written by hand whose numbers can be added up on paper."""

import json
from pathlib import Path

import pytest

from harness.errors import ModelError, Unsupported
from harness.interfaces import BuildReport
from harness.stages.quantize.proof.architecture import Architecture, read_architecture
from harness.stages.quantize.proof.coverage import FILE, Coverage, prove, report_coverage
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
# One linear layer of 64 x 128, an embedding of 100 x 128 and a norm of 128; the head is the embedding.
MODEL = Architecture(linears={"layer": (64, 128), "head": (100, 128)}, embedding="embed", head="head", tied=True)
PLAIN = {"embed.weight": ((100, 128), torch.bfloat16), "norm.weight": ((128,), torch.bfloat16)}
PLAIN_BYTES, PLAIN_WEIGHTS = 2 * (12800 + 128), 12928
WEIGHTS = 64 * 128


def folder(path: Path, tensors: dict, config: dict | None) -> Path:
    """A folder with zeros of these shapes and types, or with these tensors, and this quantization_config."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    made = {
        name: torch.zeros(given[0], dtype=given[1]) if isinstance(given, tuple) else given
        for name, given in (PLAIN | tensors).items()
    }
    save_file(made, path / "model.safetensors")
    said = {"model_type": "llama"} | ({"quantization_config": config} if config else {})
    (path / "config.json").write_text(json.dumps(said))
    return path


def compressed(layout: str, bits: int, group: int | None, *, ignore: tuple[str, ...] = ("head",), **others) -> dict:
    weights = {"num_bits": bits, "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": layout}},
        "ignore": list(ignore),
    } | others


def words(bits: int, *, groups: int = 4, columns: int = 128) -> dict:
    """The tensors of one pack-quantized layer of 64 rows with bfloat16 scales."""
    return {
        "layer.weight_packed": ((64, columns * bits // 32), torch.int32),
        "layer.weight_scale": ((64, groups), torch.bfloat16),
        "layer.weight_shape": torch.tensor([64, columns]),
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
# Layout, tensors, configuration; then bits, group, and bytes of codes, scales, zero points and the rest, by hand.
LAYOUTS = {
    # 8192 weights of 4 bits; 64 x 4 scales of 2 bytes; the written shape is two 64-bit numbers.
    "pack-quantized": (words(4), compressed("pack-quantized", 4, 32), (4, 32, 4096, 512, 0, 16)),
    "three bits": (words(3), compressed("pack-quantized", 3, 32), (3, 32, 3072, 512, 0, 16)),
    # 64 x 4 zero points of 4 bits, packed along the rows: 8 words for each group.
    "zero points": (
        words(4) | {"layer.weight_zero_point": ((8, 4), torch.int32)},
        compressed("pack-quantized", 4, 32),
        (4, 32, 4096, 512, 128, 16),
    ),
    "int-quantized": (
        {"layer.weight": ((64, 128), torch.int8), "layer.weight_scale": ((64, 1), torch.float32)},
        compressed("int-quantized", 8, None),
        (8, None, 8192, 256, 0, 0),
    ),
    "float-quantized": (
        {
            "layer.weight": ((64, 128), torch.float8_e4m3fn),
            "layer.weight_scale": ((1,), torch.float32),
            "layer.input_scale": ((1,), torch.float32),
        },
        compressed("float-quantized", 8, None),
        (8, None, 8192, 4, 0, 4),
    ),
    # A scale for every 128 x 128: one.
    "block": (
        {"layer.weight": ((64, 128), torch.float8_e4m3fn), "layer.weight_scale": ((2, 2), torch.float32)},
        compressed("float-quantized", 8, None),
        (8, None, 8192, 16, 0, 0),
    ),
    # Two weights a byte, a scale of one byte for 16, and a float32 for the matrix.
    "nvfp4-pack-quantized": (
        {
            "layer.weight_packed": ((64, 64), torch.uint8),
            "layer.weight_scale": ((64, 8), torch.float8_e4m3fn),
            "layer.weight_global_scale": ((1,), torch.float32),
        },
        compressed("nvfp4-pack-quantized", 4, 16),
        (4, 16, 4096, 516, 0, 0),
    ),
    "mxfp4-pack-quantized": (
        {"layer.weight_packed": ((64, 64), torch.uint8), "layer.weight_scale": ((64, 4), torch.uint8)},
        compressed("mxfp4-pack-quantized", 4, 32),
        (4, 32, 4096, 256, 0, 0),
    ),
    # AutoGPTQ: words run down the columns; 4 x 64 zero points of 4 bits; an index of 4 bytes for each column.
    "gptq": (
        {
            "layer.qweight": ((16, 64), torch.int32),
            "layer.qzeros": ((4, 8), torch.int32),
            "layer.scales": ((4, 64), torch.float16),
            "layer.g_idx": ((128,), torch.int32),
        },
        GPTQ,
        (4, 32, 4096, 512, 128, 512),
    ),
    # AutoAWQ gemm: words run along the rows.
    "awq": (
        {
            "layer.qweight": ((128, 8), torch.int32),
            "layer.qzeros": ((4, 8), torch.int32),
            "layer.scales": ((4, 64), torch.float16),
        },
        AWQ,
        (4, 32, 4096, 512, 128, 0),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_groups_and_bytes_are_what_the_shapes_say(layout, tmp_path):
    tensors, config, (bits, group, codes, scales, zeros, others) = LAYOUTS[layout]
    proof = prove(folder(tmp_path, tensors, config), MODEL)
    (fact,) = proof.quantized
    assert (fact.rows, fact.columns, fact.bits, fact.group) == (64, 128, bits, group)
    assert (fact.code_bytes, fact.scale_bytes, fact.zero_bytes, fact.other_bytes) == (codes, scales, zeros, others)
    packed = codes + scales + zeros + others
    assert proof.bytes == packed + PLAIN_BYTES
    assert proof.bits_per_quantized_weight == 8 * packed / WEIGHTS
    assert proof.bits_per_weight == 8 * (packed + PLAIN_BYTES) / (WEIGHTS + PLAIN_WEIGHTS)
    # Without the embedding the norm's 128 weights of 16 bits are left beside the layer.
    assert proof.bits_per_weight_without_embeddings == 8 * (packed + 256) / (WEIGHTS + 128)
    assert (proof.parameters, proof.parameters_quantized) == (WEIGHTS + PLAIN_WEIGHTS, WEIGHTS)
    assert (proof.head, proof.share_of_linear) == ("tied", 1.0)


def test_a_layer_left_plain_and_a_head_of_its_own_are_counted_as_such(tmp_path):
    model = Architecture(MODEL.linears | {"kept": (64, 128)}, "embed", "head", tied=False)
    tensors = words(4) | {"kept.weight": ((64, 128), torch.bfloat16), "head.weight": ((100, 128), torch.bfloat16)}
    proof = prove(folder(tmp_path, tensors, compressed("pack-quantized", 4, 32, ignore=("head", "kept"))), model)
    assert {tensor.name: tensor.role for tensor in proof.plain} == {
        "embed.weight": "embedding",
        "norm.weight": "other",
        "kept.weight": "linear",
        "head.weight": "head",
    }
    assert (proof.head, proof.share_of_linear) == ("own", 0.5)
    # 4096 + 512 + 16 packed, 16384 kept, 256 in the norm, for 2 * 8192 + 128 weights.
    assert proof.bits_per_weight_without_embeddings == 8 * (4624 + 16384 + 256) / (2 * WEIGHTS + 128)


def test_a_head_that_was_packed_is_no_linear_layer_of_the_inside(tmp_path):
    model = Architecture(MODEL.linears, "embed", "head", tied=False)
    head = {
        "head.weight": ((100, 128), torch.int8),
        "head.weight_scale": ((100, 1), torch.float32),
        "layer.weight": ((64, 128), torch.int8),
        "layer.weight_scale": ((64, 1), torch.float32),
    }
    proof = prove(folder(tmp_path, head, compressed("int-quantized", 8, None, ignore=())), model)
    assert proof.head == "quantized"
    assert proof.bits_per_weight_without_embeddings == 8 * (8192 + 256 + 256) / (WEIGHTS + 128)


def test_groups_by_name_come_before_groups_by_pattern_before_all_linear_layers(tmp_path):
    model = Architecture(dict.fromkeys(("a", "b", "c"), (64, 128)), "embed", None, tied=False)
    tensors = {
        f"{name}.{part.removeprefix('layer.')}": given
        for name, bits in (("a", 2), ("b", 3), ("c", 4))
        for part, given in words(bits).items()
    }
    config = compressed("pack-quantized", 4, 32, ignore=())
    for number, (target, bits) in enumerate([("re:[ab]$", 3), ("a", 2)], start=1):
        config["config_groups"][f"group_{number}"] = {
            "targets": [target],
            "weights": {"num_bits": bits, "group_size": 32},
        }
    assert {fact.module: fact.bits for fact in prove(folder(tmp_path, tensors, config), model).quantized} == {
        "a": 2,
        "b": 3,
        "c": 4,
    }


def test_gptq_exceptions_by_pattern_are_understood(tmp_path):
    config = GPTQ | {"bits": 8, "dynamic": {"+:lay.*": {"bits": 4}}}
    assert prove(folder(tmp_path, LAYOUTS["gptq"][0], config), MODEL).quantized[0].bits == 4


PLAIN_LAYER = {"layer.weight": ((64, 128), torch.bfloat16)}
LIES = {
    "a no-op that declares 4 bits": (PLAIN_LAYER, compressed("pack-quantized", 4, 32), "weight_packed is missing"),
    "nothing declared": (PLAIN_LAYER, None, "nothing was quantized"),
    "all left out": (PLAIN_LAYER, compressed("pack-quantized", 4, 32, ignore=("head", "layer")), "no weight is packed"),
    "8 bits declared as 4": (words(8), compressed("pack-quantized", 4, 32), "8 bits a weight are stored"),
    "4 bits kept in bytes": (
        {"layer.weight": ((64, 128), torch.int8), "layer.weight_scale": ((64, 1), torch.float32)},
        compressed("int-quantized", 4, None),
        "8 bits a weight are stored",
    ),
    "another group": (words(4, groups=2), compressed("pack-quantized", 4, 32), "64 columns share a scale"),
    "a group where a row is declared": (words(4), compressed("pack-quantized", 4, None), "32 columns share"),
    "packed where left out": (words(4), compressed("pack-quantized", 4, 32, ignore=("layer",)), "its tensors are pack"),
    "another shape": (words(4, groups=2, columns=64), compressed("pack-quantized", 4, 32), "the layer has 64 x 128"),
    "a layer lost": ({}, compressed("pack-quantized", 4, 32), "have no tensors in the files, first layer"),
    "no scales": (
        {name: given for name, given in words(4).items() if "scale" not in name},
        compressed("pack-quantized", 4, 32),
        "no scales",
    ),
    "gptq with other bits": (LAYOUTS["gptq"][0], GPTQ | {"bits": 8}, "4 bits a weight are stored"),
    "awq with another group": (LAYOUTS["awq"][0], AWQ | {"group_size": 64}, "32 columns share"),
    "an unknown format": (words(4), compressed("marlin-24", 4, 32), "'marlin-24' is none of"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_is_not_what_it_says_fails(lie, tmp_path):
    tensors, config, said = LIES[lie]
    with pytest.raises(ModelError, match=said):
        prove(folder(tmp_path, tensors, config), MODEL)


@pytest.mark.parametrize(
    "config", [{"quant_method": "quip"}, {**GPTQ, "checkpoint_format": "marlin"}, {**AWQ, "version": "gemv"}]
)
def test_a_layout_that_is_not_understood_is_unsupported_and_not_guessed(config, tmp_path):
    with pytest.raises(Unsupported, match="cannot be proved"):
        prove(folder(tmp_path, words(4), config), MODEL)


def test_the_proof_is_written_beside_the_weights_and_read_back(tmp_path):
    proof, report = prove(folder(tmp_path, *LAYOUTS["pack-quantized"][:2]), MODEL), BuildReport()
    report_coverage(tmp_path, proof, report=report)
    assert Coverage.model_validate_json((tmp_path / FILE).read_text()) == proof
    assert report.nominal_bytes == proof.bytes
    assert report.notes["coverage"]["layers"] == {"pack-quantized 4 bits, group 32": 1}
    assert report.notes["coverage"]["plain_bytes"] == {"BF16": PLAIN_BYTES}


@pytest.mark.parametrize("tie", [True, False])
def test_the_architecture_is_read_from_the_configuration(tie, tmp_path):
    found = read_architecture(tiny_llama(tmp_path, tie=tie))
    assert (found.embedding, found.head, found.tied) == ("model.embed_tokens", "lm_head", tie)
    # Two layers of seven, and the head; the MLP is four times as wide as the model.
    assert len(found.linears) == 15
    assert found.linears["model.layers.1.mlp.down_proj"] == (64, 256)
