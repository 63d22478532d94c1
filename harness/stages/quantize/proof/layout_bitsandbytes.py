"""How bitsandbytes lays packed linear weights into files, and what its configuration says of them.

4-bit weights are one long column of bytes, two codes a byte, the first one in the upper half, and a code is an index
into a table of 16 values. Every 64 weights, counted along the rows, share a scale, the largest magnitude among them.
With double quantization the scales lose their mean and become 8-bit indices of a second table, 256 of them to a scale
of their own. The column does not tell the matrix's shape: it is written in a piece of JSON that is stored as bytes.

    bitsandbytes-nf4, -fp4   weight U8 (R * C / 2, 1), weight.absmax F32 or U8 (R * C / 64), weight.quant_map F32 (16),
                             weight.quant_state.bitsandbytes__nf4 U8: JSON with the shape and the mean of the scales;
                             with double quantization weight.nested_absmax F32 (R * C / 64 / 256 rounded up) and
                             weight.nested_quant_map F32 (256)
    bitsandbytes-int8        weight I8 (R, C), SCB F32 (R): the largest magnitude of a row, weight_format U8 ()

Shapes: R rows (outputs), C columns (inputs). Source: `QuantState.as_dict` and `Linear8bitLt._save_to_state_dict` of
bitsandbytes 0.50.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError
from harness.stages.quantize.proof.headers import BITS, Parts, Stored

if TYPE_CHECKING:
    from harness.stages.quantize.proof.declared import Claim
    from harness.stages.quantize.proof.layouts import PackedLinear

BLOCK = 64
"""Weights that share a scale in 4 bits: what transformers leaves to bitsandbytes, and the configuration never says."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own."""
SAYS_SHAPE = "weight.quant_state.bitsandbytes__"
LAYOUT = "bitsandbytes-"


def claim_bitsandbytes(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what a configuration says about a linear module; None when it is said to be left as it is."""
    from harness.stages.quantize.proof.declared import Claim  # that module lists this function

    listed = config.get("llm_int8_skip_modules")
    # How transformers reads the list; without one it leaves the head alone.
    if any(re.match(name, module) or module.endswith(name) for name in (("lm_head",) if listed is None else listed)):
        return None
    if config.get("load_in_8bit"):
        return Claim(f"{LAYOUT}int8", 8, None, _said(float(config["llm_int8_threshold"])))
    return Claim(f"{LAYOUT}{config['bnb_4bit_quant_type']}", 4, BLOCK)


def _said(threshold: float) -> str:
    spared = f", columns that reach {threshold:g} not quantized" if threshold else ""
    return f"8-bit int per token, dynamic{spared}"


def read_4bit(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of a matrix of 4-bit indices. Raises ModelError when its tensors are not of that layout."""
    from harness.stages.quantize.proof.layouts import PackedLinear  # that module lists this function

    codes, scales = _part(module, parts, "weight"), _part(module, parts, "weight.absmax")
    rows, columns = _shape(module, _part(module, parts, SAYS_SHAPE + layout.removeprefix(LAYOUT)))
    _require(module, codes.dtype == "U8", f"stored as {codes.dtype}, and {layout} has two codes in a byte")
    bits, odd = divmod(8 * codes.bytes, rows * columns)
    _require(module, odd == 0, f"{codes.bytes} bytes are no whole bits for {rows} x {columns} weights")
    group, odd = divmod(rows * columns, scales.elements)
    _require(module, odd == 0, f"{scales.elements} scales for {rows} x {columns} weights")
    nested = 0
    if scales.dtype == "U8":
        above = _part(module, parts, "weight.nested_absmax")
        wanted = -(-scales.elements // NESTED_BLOCK)
        _require(module, above.elements == wanted, f"{above.elements} scales of scales for {scales.elements} scales")
        nested = above.bytes
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=rows,
        columns=columns,
        bits=bits,
        group=group,
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=scales.bytes + nested,
        zero_bytes=0,
        other_bytes=_rest(parts, "weight", "weight.absmax", "weight.nested_absmax"),
    )


def read_int8(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of a matrix of 8-bit integers. Raises ModelError when its tensors are not of that layout."""
    from harness.stages.quantize.proof.layouts import PackedLinear  # that module lists this function

    codes, scales = _part(module, parts, "weight"), _part(module, parts, "SCB")
    _require(module, codes.dtype == "I8", f"stored as {codes.dtype}, and {layout} is I8")
    _require(module, len(codes.shape) == 2, f"its shape {list(codes.shape)} is no matrix")
    _require(module, scales.elements == codes.shape[0], f"{scales.elements} scales for {codes.shape[0]} rows")
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=codes.shape[0],
        columns=codes.shape[1],
        bits=BITS[codes.dtype],
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=scales.bytes,
        zero_bytes=0,
        other_bytes=_rest(parts, "weight", "SCB"),
    )


def _shape(module: str, said: Stored) -> tuple[int, int]:
    try:
        rows, columns = json.loads(bytes(said.values))["shape"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{module}: what is stored beside its codes does not tell its shape: {error!r}") from error
    _require(
        module,
        all(isinstance(side, int) and side > 0 for side in (rows, columns)),
        f"its shape is said to be {rows!r} x {columns!r}",
    )
    return rows, columns


def _rest(parts: Parts, *counted: str) -> int:
    return sum(stored.bytes for name, stored in parts.items() if name not in (*counted, "bias"))


def _part(module: str, parts: Parts, name: str) -> Stored:
    if name not in parts:
        raise ModelError(f"{module}: {name} is missing; there are {', '.join(sorted(parts)) or 'no tensors'}")
    return parts[name]


def _require(module: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ModelError(f"{module}: {otherwise}")
