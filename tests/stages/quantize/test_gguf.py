"""Packing by llama.cpp, against numpy encoders, arithmetic on block sizes, and the error it is meant to weigh."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.errors import Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.gguf import NEED_A_MATRIX, TYPES, QuantizeGguf
from harness.stages.quantize.llama_cpp_quantizer import describe
from tests.building import artifact, context, convert
from tests.tiny import tiny_llama

MATRIX = {"corpus": "docstrings:default"}
MODULES = {
    "self_attn.q_proj": ("attn_q", 256), "self_attn.k_proj": ("attn_k", 256), "self_attn.v_proj": ("attn_v", 256),
    "self_attn.o_proj": ("attn_output", 256), "mlp.gate_proj": ("ffn_gate", 256), "mlp.up_proj": ("ffn_up", 256),
    "mlp.down_proj": ("ffn_down", 1024),
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float GGUF whose rows (256 and 1024) fill whole super-blocks."""
    folder = tmp_path_factory.mktemp("wide")
    return convert(tiny_llama(folder / "hf", hidden=256), folder / "gguf")[0].parent


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float GGUF whose rows (64) do not, but for the second MLP matrix (256)."""
    folder = tmp_path_factory.mktemp("narrow")
    return convert(tiny_llama(folder / "hf", hidden=64), folder / "gguf")[0].parent


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[..., Artifact]:
    """Writes an importance matrix as `capture.imatrix` does, for some layers: a few columns matter much more."""

    def write(layers: int = 2, **widths: int) -> Artifact:
        rng = np.random.default_rng(0)
        columns = {}
        for layer in range(layers):
            for module, (short, width) in MODULES.items():
                values = np.exp(3 * rng.standard_normal(widths.get(short, width))).astype(np.float32)
                columns[f"model.layers.{layer}.{module}"] = values
        folder = tmp_path / f"imatrix{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        np.savez(folder / "imatrix.npz", tokens=np.int64(8192), **columns)
        return artifact(folder, "files")

    return write


def packed(stage: QuantizeGguf, source: Path, out: Path, **artifacts: Artifact) -> tuple[dict, BuildReport]:
    """Runs the stage; gives the packed file's tensors by name, and the report."""
    import gguf

    out.mkdir()
    used = context(out.with_name(out.name + "-scratch"), **artifacts)
    stage.apply(artifact(source, "gguf"), out, context=used)
    return {t.name: t for t in gguf.GGUFReader(out / "model.gguf").tensors}, used.report


def originals(folder: Path) -> dict[str, np.ndarray]:
    import gguf

    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(folder / "model.gguf").tensors}


def test_the_numbers_of_the_types_are_llama_cpps_own() -> None:
    import llama_cpp

    for name, number in TYPES.items():
        prefix = "ALL" if name == "F32" else "MOSTLY"
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{prefix}_{name}") == number, name


def test_q8_0_equals_the_encoder_of_the_gguf_package_bit_for_bit(wide: Path, tmp_path: Path) -> None:
    import gguf

    tensors, _ = packed(QuantizeGguf(type="Q8_0"), wide, tmp_path / "out")
    floats = originals(wide)
    matrices = [name for name, weight in floats.items() if weight.ndim == 2]
    assert len(matrices) == 1 + 2 * 7
    for name in matrices:
        expected = gguf.quantize(floats[name], gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(tensors[name].data, expected, err_msg=name)


@pytest.mark.parametrize(
    ("type_", "bits"), [("Q8_0", 8.5), ("Q4_0", 4.5), ("Q4_K_S", 4.5), ("Q6_K", 6.5625), ("BF16", 16)]
)
def test_bits_per_weight_are_those_of_the_blocks(type_: str, bits: float, wide: Path, tmp_path: Path) -> None:
    # Q8_0: 32 bytes and a 2-byte scale for 32 weights; Q4_0: 16 + 2 bytes. Q4_K: 256 weights in 128 bytes, 12 bytes of
    # 6-bit scales and minima, two 2-byte scales; Q6_K: 192 bytes, 16 one-byte scales, one 2-byte scale.
    hidden, layers, vocabulary, mlp = 256, 2, 384, 1024
    vectors = (2 * layers + 1) * hidden
    attention = hidden * hidden + 2 * hidden * hidden // 2 + hidden * hidden
    matrices = vocabulary * hidden + layers * (attention + 3 * hidden * mlp)
    _, report = packed(QuantizeGguf(type=type_, pure=True), wide, tmp_path / "out")
    assert report.notes["bits_per_weight"] == pytest.approx((bits * matrices + 32 * vectors) / (matrices + vectors))
    assert report.notes["weights_F32"] == vectors
    assert report.labels == []


def test_rows_that_do_not_fill_super_blocks_are_counted_and_labelled(narrow: Path, tmp_path: Path) -> None:
    tensors, report = packed(QuantizeGguf(type="Q4_K_M"), narrow, tmp_path / "out")
    counted: dict[str, int] = {}
    for tensor in tensors.values():
        counted[tensor.tensor_type.name] = counted.get(tensor.tensor_type.name, 0) + int(np.prod(tensor.shape))
    assert {key.removeprefix("weights_"): n for key, n in report.notes.items() if key.startswith("weights_")} == counted
    assert "Q5_0" in counted
    (label,) = report.labels
    # Per layer 3 × 64 × 256 weights of the MLP, of which the 64 × 256 of ffn_down alone have rows of 256.
    attention = 64 * 64 * 2 + 64 * 32 * 2
    other = 384 * 64 + 2 * (attention + 2 * 64 * 256)
    total = other + 2 * 64 * 256 + 5 * 64
    assert label.startswith(f"rows that are no multiple of 256 cannot be Q4_K_M: {other / total:.0%} of the weights")


def test_an_importance_matrix_lowers_the_error_it_weighs_in_every_q4_k_matrix(
    wide: Path, tmp_path: Path, matrix: Callable[..., Artifact]
) -> None:
    import gguf

    importance = matrix()
    floats = originals(wide)
    plain, _ = packed(QuantizeGguf(type="Q4_K_S"), wide, tmp_path / "plain")
    weighed, report = packed(
        QuantizeGguf(type="Q4_K_S", imatrix=MATRIX), wide, tmp_path / "weighed", imatrix=importance
    )
    assert report.notes["imatrix_tokens"] == 8192
    assert "importance matrix taken from the family's reference" in report.labels
    stored = np.load(importance.path / "imatrix.npz")
    compared = 0
    for layer in range(2):
        for module, (short, _) in MODULES.items():
            name = f"blk.{layer}.{short}.weight"
            if {plain[name].tensor_type.name, weighed[name].tensor_type.name} != {"Q4_K"}:
                continue  # the mixture may give a tensor more bits with a matrix than without
            columns = stored[f"model.layers.{layer}.{module}"].astype(np.float64)

            def error(tensor: object, name: str = name, columns: np.ndarray = columns) -> float:
                return float((columns * (floats[name] - gguf.dequantize(tensor.data, tensor.tensor_type)) ** 2).sum())

            assert error(weighed[name]) < error(plain[name]), name
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("type_", ["IQ2_XXS", "IQ3_XS"])
def test_types_that_need_a_matrix_work_with_one(
    type_: str, wide: Path, tmp_path: Path, matrix: Callable[..., Artifact]
) -> None:
    _, report = packed(QuantizeGguf(type=type_, imatrix=MATRIX), wide, tmp_path / "out", imatrix=matrix())
    assert report.notes["bits_per_weight"] < 5


@pytest.mark.parametrize("type_", [name for name in TYPES if name != "F32"])
def test_the_types_refused_without_a_matrix_are_those_that_llama_cpp_refuses(
    type_: str, wide: Path, tmp_path: Path
) -> None:
    from harness.stages.quantize import llama_cpp_quantizer as packing

    job = packing.Job(wide / "model.gguf", tmp_path / "out.gguf", TYPES[type_], pure=False, keep_output=False)
    if type_ not in NEED_A_MATRIX:
        packing.quantize(job, matrix=None, threads=1, progress=lambda _, __: None)
        return
    with pytest.raises(Unsupported, match="requires an imatrix"):
        packing.quantize(job, matrix=None, threads=1, progress=lambda _, __: None)
    with pytest.raises(ValueError, match=f"{type_} needs an importance matrix"):
        QuantizeGguf(type=type_)


@pytest.mark.parametrize(("layers", "widths"), [(1, {}), (3, {}), (2, {"ffn_down": 512})])
def test_a_matrix_of_a_model_with_other_layers_or_widths_is_refused(
    layers: int, widths: dict[str, int], wide: Path, tmp_path: Path, matrix: Callable[..., Artifact]
) -> None:
    with pytest.raises(Unsupported, match="does not fit this model"):
        packed(QuantizeGguf(type="Q4_K_M", imatrix=MATRIX), wide, tmp_path / "out", imatrix=matrix(layers, **widths))


def test_the_output_layer_can_be_kept_where_it_is_the_embedding(wide: Path, tmp_path: Path) -> None:
    tensors, _ = packed(QuantizeGguf(type="Q4_0", keep_output=True), wide, tmp_path / "out")
    assert tensors["token_embd.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"


def test_a_packed_file_is_not_packed_again(wide: Path, tmp_path: Path) -> None:
    packed(QuantizeGguf(type="Q8_0"), wide, tmp_path / "once")
    with pytest.raises(Unsupported, match=r"packed weights already \(Q8_0\)"):
        packed(QuantizeGguf(type="Q4_0"), tmp_path / "once", tmp_path / "twice")


def test_the_matrix_is_a_need_from_the_reference_with_the_arguments_of_the_capture() -> None:
    assert QuantizeGguf(type="Q8_0").needs == ()
    (need,) = QuantizeGguf(type="IQ2_XS", imatrix={**MATRIX, "tokens": 1024}).needs
    assert (need.name, need.source) == ("imatrix", "reference")
    (stage,) = need.stages
    assert (stage.use, stage.args) == ("capture.imatrix", {"corpus": "docstrings:default", "tokens": 1024})


@pytest.mark.parametrize(
    "args", [{"type": "Q4"}, {"type": "Q8_0", "imatrix": {}}, {"type": "Q8_0", "imatrix": {"x": 1}}]
)
def test_wrong_arguments_are_refused(args: dict) -> None:
    with pytest.raises(ValueError, match=r"must be one of|takes the arguments of"):
        QuantizeGguf(**args)


def test_the_description_of_a_float_file_is_its_own_types(wide: Path) -> None:
    report = BuildReport()
    describe(wide / "model.gguf", wanted="F32", report=report)
    assert report.notes["bits_per_weight"] == 32
