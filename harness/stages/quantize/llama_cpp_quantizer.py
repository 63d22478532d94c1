"""The work behind `quantize.gguf`: one call into llama.cpp, an importance matrix handed over, a count of the result.

llama.cpp says why it failed only in its log, so the log is listened to while it works and becomes the error's text. It
uses an importance matrix for the tensors it finds there and goes on without a word where it finds none, so coverage is
checked here first.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import Unsupported
from harness.interfaces import BuildReport, Progress

if TYPE_CHECKING:
    from gguf import GGUFReader

Columns = npt.NDArray[np.float32]

FLOATS: Final = frozenset({"F32", "F16", "BF16"})
_BLOCKS_OF_32: Final = frozenset({"Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"})
_SUPER_BLOCK: Final = 256  # QK_K in ggml: weights in one block of the K types and of the other IQ types
_STEP: Final = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")


@dataclass(frozen=True)
class Job:
    """A file to quantize, where to, to which `llama_ftype`, and how."""

    source: Path
    target: Path
    ftype: int
    pure: bool
    keep_output: bool


@dataclass(frozen=True)
class Matrix:
    """The mean square of each input column of every GGUF tensor, contiguous, and the tokens it was seen on."""

    columns: Mapping[str, Columns]
    tokens: int


def float_gguf(folder: Path) -> Path:
    """Gives the GGUF file of an artifact; raises Unsupported when its weights are packed already."""
    import gguf

    (file,) = sorted(folder.glob("*.gguf"))
    packed = {t.tensor_type.name for t in gguf.GGUFReader(file).tensors} - FLOATS
    if packed:
        raise Unsupported(
            f"the GGUF file holds packed weights already ({', '.join(sorted(packed))})",
            remedy="start from the float model: quantizing twice measures neither",
        )
    return file


def read_matrix(folder: Path, *, model: Path) -> Matrix:
    """Reads what `capture.imatrix` wrote, under the names of `model`'s tensors.

    Raises Unsupported unless it covers the matrices of all layers, in their widths, and nothing else: llama.cpp would
    quantize what is not covered as if no matrix had been asked for.
    """
    import gguf

    with np.load(folder / "imatrix.npz", allow_pickle=False) as stored:
        by_module = {
            name: np.ascontiguousarray(stored[name], dtype=np.float32) for name in stored.files if name != "tokens"
        }
        tokens = int(stored["tokens"])
    reader = gguf.GGUFReader(model)
    columns = dict(_renamed(by_module, reader))
    expected = {t.name: int(t.shape[0]) for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) > 1}
    found = {name: len(values) for name, values in columns.items()}
    if wrong := sorted(expected.items() ^ found.items()):
        raise Unsupported(
            f"the importance matrix of the reference does not fit this model: {wrong[0][0]} is one of "
            f"{len({name for name, _ in wrong})} tensors that only one of them has, or has in that width",
            remedy="leave `imatrix` out for a model with other layers or widths than its reference",
        )
    return Matrix(columns, tokens)


def _renamed(by_module: Mapping[str, Columns], reader: GGUFReader) -> Iterator[tuple[str, Columns]]:
    """Gives columns under llama.cpp's names for the modules of this architecture; unknown modules keep their own."""
    import gguf

    architecture = reader.fields["general.architecture"].contents()
    (kind,) = (kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, int(reader.fields[f"{architecture}.block_count"].contents()))
    for module, values in by_module.items():
        yield f"{names.get_name(module) or module}.weight", values


def quantize(job: Job, *, matrix: Matrix | None, threads: int, progress: Progress) -> None:
    """Writes `job.target`. Raises Unsupported with llama.cpp's own words when it refuses."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = threads, job.ftype, job.pure
    if job.keep_output:
        _keep_output(params, job.source)
    if matrix is not None:
        params.imatrix = _as_c_array(matrix)
    with _listening(progress) as lines:
        code = llama_cpp.llama_model_quantize(str(job.source).encode(), str(job.target).encode(), ctypes.byref(params))
    if code != 0:
        said = next((line for line in reversed(lines) if "failed" in line), f"exit code {code}")
        raise Unsupported(f"llama.cpp refuses to quantize: {said}", remedy="choose another type")


def _keep_output(params: Any, source: Path) -> None:
    import gguf

    types = {t.name: t.tensor_type.value for t in gguf.GGUFReader(source).tensors}
    if "output.weight" in types:
        params.quantize_output_tensor = False
    else:
        params.token_embedding_type = types["token_embd.weight"]


def _as_c_array(matrix: Matrix) -> Any:
    """Gives `llama_model_imatrix_data[]`, ended by an entry without a name. `matrix` must outlive its use."""
    import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix.columns) + 1))()
    for entry, (name, values) in zip(entries, matrix.columns.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


@contextmanager
def _listening(progress: Progress) -> Iterator[list[str]]:
    """Gives llama.cpp's log lines as they come, turned into progress; puts the former listener back afterwards."""
    import llama_cpp

    lines: list[str] = []

    def hear(_: int, text: bytes, __: object) -> None:
        line = text.decode(errors="replace").strip()
        if line:
            lines.append(line)
        if step := _STEP.search(line):
            progress(int(step[1]) / int(step[2]), f"packing {step[3]}")

    former, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(former), ctypes.byref(user_data))
    listener = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(listener, ctypes.c_void_p())
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(former, user_data)


def describe(file: Path, *, wanted: str, report: BuildReport) -> None:
    """Notes weights by type and the true bits per weight, and labels what could not be packed as asked."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / weights.total()
    report.notes |= {f"weights_{name}": count for name, count in sorted(weights.items())}
    report.notes["bits_per_weight"] = bits
    if wanted in FLOATS | _BLOCKS_OF_32:
        return
    other = [tensor for tensor in tensors if len(tensor.shape) > 1 and int(tensor.shape[0]) % _SUPER_BLOCK]
    if other:
        share = sum(int(tensor.n_elements) for tensor in other) / weights.total()
        types = ", ".join(sorted({tensor.tensor_type.name for tensor in other}))
        report.labels.append(
            f"rows that are no multiple of {_SUPER_BLOCK} cannot be {wanted}: {share:.0%} of the weights are {types}, "
            f"and the file has {bits:.2f} bits per weight"
        )
