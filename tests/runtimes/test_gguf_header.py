"""The list of tensors in a GGUF file, with the gguf package as oracle."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from harness.errors import CorruptArtifact
from harness.runtimes._gguf_header import tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with metadata of every kind and tensors of many types."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_bool("a.bool", True)
    writer.add_int8("a.i8", -1)
    writer.add_uint16("a.u16", 1)
    writer.add_float32("a.f32", 1.5)
    writer.add_float64("a.f64", 1.5)
    writer.add_int64("a.i64", -5)
    writer.add_string("a.string", "naïve")
    writer.add_array("a.strings", ["one", "two", "", "three"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.nested", [[1, 2], [3]])
    weights = np.arange(2 * 256, dtype=np.float32).reshape(2, 256)
    writer.add_tensor("plain", weights)
    writer.add_tensor("half", weights.astype(np.float16))
    writer.add_tensor("vector", weights[0])
    for kind in ("Q4_0", "Q8_0", "BF16"):
        packed = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"as {kind}", gguf.quants.quantize(weights, packed), raw_dtype=packed)
    for kind in ("Q4_K", "IQ4_XS", "Q6_K"):
        packed = gguf.GGMLQuantizationType[kind]
        _, size = gguf.GGML_QUANT_SIZES[packed]
        writer.add_tensor(f"as {kind}", np.zeros((2, size), dtype=np.uint8), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_the_list_is_the_one_the_gguf_package_reads(file: Path) -> None:
    oracle = [
        (tensor.name, tuple(int(n) for n in tensor.shape), tensor.tensor_type.name.lower(), int(tensor.n_elements))
        for tensor in gguf.GGUFReader(file).tensors
    ]
    assert [(t.name, t.shape, t.type.lower(), t.elements) for t in tensors(file)] == oracle


def test_types_are_spelled_as_ggml_spells_them(file: Path) -> None:
    """From the `type_name` entries of ggml.c."""
    expected = {"f32", "f16", "bf16", "q4_0", "q8_0", "q4_K", "q6_K", "iq4_xs"}
    assert {tensor.type for tensor in tensors(file)} == expected


@pytest.mark.parametrize("keep", [10, 100, 400])
def test_a_file_cut_short_is_corrupt(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptArtifact):
        tensors(file)


def test_another_kind_of_file_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(CorruptArtifact, match="begins with GGUF"):
        tensors(tmp_path / "model.gguf")
