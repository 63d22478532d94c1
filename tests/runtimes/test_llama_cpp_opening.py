"""What the runtime llama_cpp decides before and while it opens a file: arguments, files, devices, error codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import Unsupported
from harness.runtimes import _llama_api as api
from harness.runtimes.llama_cpp import LlamaCpp, repacking_is_safe
from harness.spec import Hardware, Use
from tests.runtimes.tiny_gguf import artifact

CPU, GPU = Hardware(), Hardware(device="cuda")


def test_a_file_that_is_no_model_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with (
        pytest.raises(Unsupported, match=r"cannot load model\.gguf"),
        LlamaCpp().open(artifact(tmp_path), hardware=CPU),
    ):
        pass


def test_a_folder_has_exactly_one_file(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="found none"), LlamaCpp().open(artifact(tmp_path), hardware=CPU):
        pass
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(Unsupported, match=r"a\.gguf, b\.gguf"), LlamaCpp().open(artifact(tmp_path), hardware=CPU):
        pass


@pytest.mark.skipif(api.offload_is_built_in(), reason="this llama.cpp has a GPU")
def test_a_gpu_that_the_build_lacks_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="GGML_CUDA"), LlamaCpp().open(artifact(tmp_path), hardware=GPU):
        pass


def test_a_decode_that_fails_says_how() -> None:
    assert isinstance(api.decode_error(1, reason="full"), Unsupported)
    assert isinstance(api.decode_error(-2, reason="no memory"), MemoryError)
    assert isinstance(api.decode_error(-1, reason="bad"), RuntimeError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kv": "q8_0"},
        {"kv": "q4_k", "flash_attention": True},
        {"sequences": 0},
        {"sequences": 257, "batch_tokens": 512},
        {"batch_tokens": 8},
        {"batch_tokens": 512, "context": 256},
        {"gpu_layers": -1},
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="allowed"):
        LlamaCpp(**arguments)


def test_repacking_is_switched_off_where_llama_cpp_was_built_with_amx() -> None:
    """Both lines are what llama.cpp prints on such machines; see `ggml_backend_cpu_get_features`."""
    assert not repacking_is_safe("CPU : AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | REPACK = 1 | ")
    assert repacking_is_safe("CPU : AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | ")


def test_the_runtime_says_what_it_opens() -> None:
    first = (Use(use="convert.gguf"),)
    assert dict(LlamaCpp().formats) == {"gguf": (), "hf": first, "grid": first}
