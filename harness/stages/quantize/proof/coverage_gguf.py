"""The coverage proof of a GGUF file: every matrix by the blocks it is stored in.

A GGUF type fixes a block: how many weights it holds, how many of them share a scale, and how its bytes divide into
codes and scales. So the type of a tensor in the file says what a name such as "Q4_K_M" does not.

Source: block structures in ggml-common.h of llama.cpp; sizes of whole blocks from the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.headers import PLAIN_FLOATS
from harness.stages.quantize.proof.layouts import PackedLinear

if TYPE_CHECKING:
    from harness.stages.quantize.proof.coverage import Coverage, PlainTensor

EMBEDDING, HEAD = "token_embd", "output"


@dataclass(frozen=True)
class Block:
    """Bits of one code, weights that share a scale, and bytes of a block that hold scales, shifts and minima."""

    bits: int
    group: int
    scale_bytes: int


BLOCKS: Final[Mapping[str, Block]] = {
    "Q8_0": Block(8, 32, 2), "Q5_1": Block(5, 32, 4), "Q5_0": Block(5, 32, 2), "Q4_1": Block(4, 32, 4),
    "Q4_0": Block(4, 32, 2), "IQ4_NL": Block(4, 32, 2), "MXFP4": Block(4, 32, 1),
    # Super-blocks of 256: a scale for each sub-block of `group`, and one or two 16-bit scales over all of them.
    "Q6_K": Block(6, 16, 18), "Q5_K": Block(5, 32, 16), "Q4_K": Block(4, 32, 16), "Q3_K": Block(3, 16, 14),
    "Q2_K": Block(2, 16, 20), "IQ4_XS": Block(4, 32, 8),
    # Codes are places in a table of eight or four weights, some with signs apart; scales partly lie between the codes.
    "IQ3_S": Block(3, 32, 6), "IQ3_XXS": Block(3, 32, 6), "IQ2_S": Block(2, 16, 10), "IQ2_XS": Block(2, 16, 10),
    "IQ2_XXS": Block(2, 32, 6), "IQ1_S": Block(1, 32, 6), "IQ1_M": Block(1, 16, 8),
}  # fmt: skip
"""What the blocks of ggml's types hold. Codes of tables (IQ1 to IQ3) are called by the whole bits of a weight."""


def prove_gguf(file: Path) -> Coverage:
    """Gives what a GGUF file stores. Raises ModelError when it has no quantized matrix or a type that is not known."""
    import gguf

    from harness.stages.quantize.proof.coverage import total

    tensors = gguf.GGUFReader(file).tensors
    tied = f"{HEAD}.weight" not in {tensor.name for tensor in tensors}
    packed = [_packed(tensor) for tensor in tensors if tensor.tensor_type.name not in PLAIN_FLOATS]
    plain = [_plain(tensor) for tensor in tensors if tensor.tensor_type.name in PLAIN_FLOATS]
    if not packed:
        raise ModelError(f"{file.name} holds no quantized matrix")
    return total("gguf", packed, plain, Architecture(linears={}, embedding=EMBEDDING, head=HEAD, tied=tied))


def _packed(tensor: Any) -> PackedLinear:
    import gguf

    name = tensor.tensor_type.name
    if name not in BLOCKS:
        raise ModelError(f"{tensor.name} is stored as {name}, whose blocks are not known here")
    block, weights = BLOCKS[name], int(tensor.n_elements)
    size, _ = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    scale_bytes = weights // size * block.scale_bytes
    columns = int(tensor.shape[0])
    return PackedLinear(
        module=tensor.name.removesuffix(".weight"),
        layout="ggml",
        storage=name,
        rows=weights // columns,
        columns=columns,
        bits=block.bits,
        group=block.group,
        scale_type="inside the block",
        scales=(weights // columns, columns // block.group),
        code_bytes=int(tensor.n_bytes) - scale_bytes,
        scale_bytes=scale_bytes,
        zero_bytes=0,
        other_bytes=0,
    )


def _plain(tensor: Any) -> PlainTensor:
    from harness.stages.quantize.proof.coverage import PlainTensor

    ends = {EMBEDDING: "embedding", HEAD: "head"}
    matrix = "linear" if tensor.name.startswith("blk.") and len(tensor.shape) > 1 else "other"
    return PlainTensor.model_validate(
        {
            "name": tensor.name,
            "role": ends.get(tensor.name.removesuffix(".weight"), matrix),
            "storage": tensor.tensor_type.name,
            "parameters": int(tensor.n_elements),
            "bytes": int(tensor.n_bytes),
        }
    )
