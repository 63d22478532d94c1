"""Stages that pack, run on tiny models, and decoders of what they wrote: from the formats' definitions, bit by bit.

Shapes: R rows, C columns, G groups a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.proof import reloading
from tests.building import artifact, context

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP Microscaling Formats 1.0, table 5


def pack(stage, source: Artifact, folder: Path, **needs: Artifact) -> tuple[Artifact, BuildReport]:
    """Runs a stage, and gives the packed folder and the report."""
    out = folder / "out"
    out.mkdir(parents=True)
    used = context(folder / "scratch", **needs)
    stage.apply(source, out, context=used)
    return artifact(out, "packed"), used.report


def read_here(out: Path, seen: reloading.Probe, *, context: object):
    """Stands in for the child process where the fresh process is not what is tested: the same loader, in this one."""
    from harness.runtimes._hf_load import load_model
    from harness.spec import Hardware

    model = load_model(out, dtype=seen.dtype, attention=seen.attention, hardware=Hardware())
    return reloading.read(model, seen.tokens_BT)


@contextmanager
def reading_here() -> Iterator[None]:
    """Reads packed folders back in this process inside: several seconds less for each stage that is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloading, "_read_afresh", read_here)
        yield


def reopened(folder: Path):
    """The model as the runtime opens it."""
    from harness.runtimes._hf_load import load_model
    from harness.spec import Hardware

    return load_model(folder, dtype="auto", attention="sdpa", hardware=Hardware())


def tensors(folder: Path, module: str = "") -> dict:
    """The stored tensors whose names start with a module's, without it."""
    from safetensors.torch import load_file

    loaded = load_file(folder / "model.safetensors")
    start = f"{module}." if module else ""
    return {name.removeprefix(start): tensor for name, tensor in loaded.items() if name.startswith(start)}


def rewrite(folder: Path, change) -> None:
    """Changes the stored tensors of a folder by a function of the dictionary."""
    from safetensors.torch import save_file

    stored = tensors(folder)
    change(stored)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, change) -> None:
    """Changes the quantization_config of a folder by a function of the dictionary."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def words_to_codes(words_RW: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Codes (R, C): code c of a row is bits c * bits and on, the first word holding the lowest ones."""
    rows = []
    for words_W in words_RW.astype("<i4"):
        number = int.from_bytes(words_W.tobytes(), "little")
        rows.append([(number >> (c * bits)) & (2**bits - 1) for c in range(columns)])
    return np.array(rows)


def unpack_integers(folder: Path, module: str) -> np.ndarray:
    """The weights (R, C) in float64 that a pack-quantized module stands for."""
    stored = tensors(folder, module)
    rows, columns = stored["weight_shape"].tolist()
    words = stored["weight_packed"].numpy()
    bits = words.shape[1] * 32 // columns
    codes_RC = words_to_codes(words, bits, columns)
    scales_RG = stored["weight_scale"].double().numpy()
    zeros_RG = np.full(scales_RG.shape, 2 ** (bits - 1))
    if "weight_zero_point" in stored:
        zeros_RG = words_to_codes(stored["weight_zero_point"].numpy().T, bits, rows).T
    width = columns // scales_RG.shape[1]
    return (codes_RC - np.repeat(zeros_RG, width, axis=1)) * np.repeat(scales_RG, width, axis=1)


def e4m3(byte: int) -> float:
    """An 8-bit float: sign, 4 bits of exponent with bias 7, 3 bits of fraction; 0x7f is no number."""
    sign, exponent, fraction = -1 if byte & 0x80 else 1, (byte >> 3) & 0xF, byte & 7
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


def decode_bytes(matrix, table: list[float]) -> np.ndarray:
    """A float for every byte of a tensor, from a table of 256."""
    import torch

    return np.array(table)[matrix.view(torch.uint8).numpy()]


def e2m1(packed_RB: np.ndarray) -> np.ndarray:
    """Two values a byte, the lower half first; the highest bit of a half is the sign."""
    halves = np.stack([packed_RB & 0xF, packed_RB >> 4], axis=-1).reshape(len(packed_RB), -1)
    return np.where(halves & 8, -1.0, 1.0) * np.array(E2M1)[halves & 7]
