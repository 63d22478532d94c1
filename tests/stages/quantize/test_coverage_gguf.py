"""The proof of GGUF files: block sizes as published, decoding by two programs, and sums by hand."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError
from harness.stages.quantize.gguf import NEED_A_MATRIX, QuantizeGguf
from harness.stages.quantize.proof.coverage_gguf import BLOCKS, prove_gguf
from tests.building import artifact, context, convert
from tests.tiny import tiny_llama

# Bits per weight as llama.cpp prints them when it lists its types.
PUBLISHED = {
    "Q8_0": 8.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0, "Q4_0": 4.5, "IQ4_NL": 4.5, "MXFP4": 4.25,
    "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625, "IQ4_XS": 4.25,
    "IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "IQ2_S": 2.5625, "IQ2_XS": 2.3125, "IQ2_XXS": 2.0625,
    "IQ1_S": 1.5625, "IQ1_M": 1.75,
}  # fmt: skip
HIDDEN, LAYERS, VOCABULARY, MLP = 256, 2, 384, 1024


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    return convert(tiny_llama(folder / "hf", hidden=HIDDEN), folder / "gguf")[0].parent


def packed(type_: str, floats: Path, folder: Path, **args: object) -> tuple[Path, dict]:
    out = folder / type_
    out.mkdir()
    used = context(folder / f"{type_}-scratch")
    QuantizeGguf(type=type_, **args).apply(artifact(floats, "gguf"), out, context=used)
    return out, used.report.notes


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_block_has_the_published_bits_and_room_for_its_codes(name: str) -> None:
    import gguf

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    block = BLOCKS[name]
    assert 8 * size / weights == PUBLISHED[name]
    assert weights % block.group == 0
    code_bits = 8 * (size - block.scale_bytes) / weights
    if name.startswith(("Q", "MX", "IQ4")):
        assert code_bits == block.bits
    else:  # an index into a table, with signs and high bits apart: a fraction of a bit more or less than its name says
        assert block.bits - 0.3 < code_bits <= block.bits + 0.5


def test_every_type_that_is_known_has_a_published_size() -> None:
    assert set(BLOCKS) == set(PUBLISHED)


def test_the_sums_are_those_of_the_architecture(floats: Path, tmp_path: Path) -> None:
    out, notes = packed("Q4_K_S", floats, tmp_path, pure=True)
    proof = prove_gguf(out / "model.gguf")
    matrices = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * MLP)
    embedding, norms = VOCABULARY * HIDDEN, (2 * LAYERS + 1) * HIDDEN
    assert proof.parameters == matrices + embedding + norms
    assert proof.parameters_quantized == matrices + embedding
    assert proof.head == "tied"
    assert proof.bits_per_quantized_weight == 4.5
    assert proof.bits_per_weight == pytest.approx(
        (4.5 * (matrices + embedding) + 32 * norms) / (matrices + embedding + norms)
    )
    assert proof.bits_per_weight_without_embeddings == pytest.approx((4.5 * matrices + 32 * norms) / (matrices + norms))
    (query,) = (fact for fact in proof.quantized if fact.module == "blk.1.attn_q")
    # A super-block of 256 holds 12 bytes of 6-bit scales and minima and two 16-bit numbers.
    assert (query.rows, query.columns, query.group, query.scale_bytes) == (256, 256, 32, 256 * 16)
    assert query.code_bytes == 256 * 256 // 2
    assert notes["coverage"]["layers"] == {"ggml 4 bits, group 32": LAYERS * 7 + 1}
    assert (out / "coverage.json").is_file()


def test_a_file_that_holds_no_quantized_matrix_is_no_proof(floats: Path) -> None:
    with pytest.raises(ModelError, match="no quantized matrix"):
        prove_gguf(floats / "model.gguf")


def llama_cpp_decodes(data: np.ndarray, type_: str, weights: int) -> np.ndarray:
    import llama_cpp

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    decode = getattr(library, "dequantize_row_" + type_.lower().replace("_k", "_K"))
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decoded = np.empty(weights, np.float32)
    decode(np.ascontiguousarray(data).ctypes.data, decoded.ctypes.data, weights)
    return decoded


@pytest.mark.parametrize("type_", sorted(set(BLOCKS) - {"MXFP4", "IQ3_S", "IQ2_S"} - NEED_A_MATRIX))
def test_the_gguf_package_decodes_what_llama_cpp_wrote_as_llama_cpp_does(
    type_: str, floats: Path, tmp_path: Path
) -> None:
    import gguf

    file_type = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}.get(type_, type_)
    out, _ = packed(file_type, floats, tmp_path, pure=True)
    tensors = [t for t in gguf.GGUFReader(out / "model.gguf").tensors if t.tensor_type.name == type_]
    assert len(tensors) >= LAYERS * 7
    for tensor in tensors:
        theirs = llama_cpp_decodes(tensor.data, type_, int(tensor.n_elements))
        np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type).ravel(), theirs, tensor.name)


@pytest.mark.parametrize("type_", sorted(BLOCKS))
def test_both_decode_any_bytes_alike(type_: str) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[type_]
    weights, size = gguf.GGML_QUANT_SIZES[number]
    data = np.random.default_rng(0).integers(0, 256, (64, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = gguf.dequantize(data, number).reshape(64, weights)
    theirs = llama_cpp_decodes(data, type_, 64 * weights).reshape(64, weights)
    finite = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)
    assert finite.mean() > 0.8  # some 16-bit scales among random bytes are no numbers
    # One may multiply and add in one rounding where the other takes two, and what is left may be small against both.
    largest = np.abs(theirs[finite]).max(axis=1, keepdims=True)
    np.testing.assert_array_less(np.abs(ours[finite] - theirs[finite]) / largest, 1e-6)
