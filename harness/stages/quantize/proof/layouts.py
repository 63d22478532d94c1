"""How a packed linear weight lies in a file, layout by layout, and what its tensors alone say about it.

Every layout gives the same facts: the logical shape, how many bits a weight really takes, how many columns share a
scale, and the bytes of codes, scales and zero points. Bits come from shapes: the bits of all code words over the number
of logical weights. What the configuration says is not asked here.

    pack-quantized        weight_packed I32 (R, ceil(C * bits / 32)), weight_scale (R, G), weight_shape [R, C],
                          weight_zero_point I32 (ceil(R * bits / 32), G) where asymmetric
    int-quantized         weight I8 (R, C), weight_scale (R, 1), (R, G) or (1)
    float-quantized       weight F8 (R, C), weight_scale (R, 1), (1), or one for each block of rows and columns
    nvfp4-pack-quantized  weight_packed U8 (R, C / 2), weight_scale F8 (R, C / 16), weight_global_scale F32 (1)
    mxfp4-pack-quantized  weight_packed U8 (R, C / 2), weight_scale U8 (R, C / 32): exponents
    mxfp8-quantized       weight F8 (R, C), weight_scale U8 (R, C / 32): exponents
    gptq                  qweight I32 (C * bits / 32, R), qzeros I32 (G, R * bits / 32), scales (G, R), g_idx I32 (C)
    awq                   qweight I32 (C, R * bits / 32), qzeros I32 (G, R * bits / 32), scales (G, R)

Shapes: R rows (outputs), C columns (inputs), G groups a row. Source: compressed-tensors 0.19, AutoGPTQ, AutoAWQ (gemm).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from harness.errors import ModelError
from harness.spec import Value
from harness.stages.quantize.proof.headers import BITS, Parts, Stored
from harness.stages.quantize.proof.layout_autoround import AUTOROUND_READERS
from harness.stages.quantize.proof.layout_bitsandbytes import read_4bit, read_int8
from harness.stages.quantize.proof.layout_hqq import read_hqq
from harness.stages.quantize.proof.layout_quanto import LAYOUTS_OF_QUANTO, read_quanto
from harness.stages.quantize.proof.layout_torchao import LAYOUTS_OF_TORCHAO, read_torchao

NVFP4_GROUP, MX_GROUP = 16, 32
"""Columns that share a scale: part of what these formats are."""


class PackedLinear(Value):
    """One quantized linear weight as its tensors show it.

    `group` is the number of columns that share a scale; absent when a whole row, a whole matrix or a block of rows
    does, which `scales` (the shape of the scales) tells apart. `other_bytes` are group indices, activation scales and
    written-down shapes.
    """

    module: str
    layout: str
    storage: str
    rows: int
    columns: int
    bits: int
    group: int | None = None
    scale_type: str
    scales: tuple[int, ...]
    code_bytes: int
    scale_bytes: int
    zero_bytes: int
    other_bytes: int
    activations: str | None = None

    @property
    def sharing(self) -> str:
        """Says in words which weights share a scale."""
        if math.prod(self.scales) == 1:
            return "whole matrix"
        if self.group is not None:
            return f"group {self.group}"
        return "whole row" if math.prod(self.scales) == self.rows else "block"

    @property
    def weights(self) -> int:
        """Gives the number of logical weights."""
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Gives all bytes that the quantizer stores for this weight."""
        return self.code_bytes + self.scale_bytes + self.zero_bytes + self.other_bytes


Shape = tuple[int, int]
"""Logical rows and columns."""


def read_packed(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of one quantized weight. Raises ModelError when its tensors are not of that layout."""
    if layout not in LAYOUTS:
        raise ModelError(f"{module}: the layout {layout!r} is none of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout](module, layout, parts)


def _pack_quantized(module: str, layout: str, parts: Parts) -> PackedLinear:
    codes, written = _part(module, parts, "weight_packed"), _part(module, parts, "weight_shape")
    rows, columns = _pair(module, written.values)
    _require(module, codes.shape[0] == rows, f"{codes.shape[0]} rows of codes for {rows} rows")
    return _facts(module, layout, parts, shape=(rows, columns), bits=_bits(module, codes.shape[1], columns))


def _plain_codes(module: str, layout: str, parts: Parts) -> PackedLinear:
    codes = _part(module, parts, "weight")
    wanted = "I8" if layout == "int-quantized" else "F8_E4M3"
    _require(module, codes.dtype == wanted, f"stored as {codes.dtype}, and {layout} is {wanted}")
    return _facts(module, layout, parts, shape=_pair(module, codes.shape), bits=BITS[codes.dtype])


def _two_a_byte(module: str, layout: str, parts: Parts) -> PackedLinear:
    codes, scales = _part(module, parts, "weight_packed"), _part(module, parts, "weight_scale")
    wanted, group = ("F8_E4M3", NVFP4_GROUP) if layout.startswith("nvfp4") else ("U8", MX_GROUP)
    _require(module, codes.dtype == "U8", f"codes are stored as {codes.dtype}, and {layout} has two in a byte")
    _require(module, scales.dtype == wanted, f"scales are stored as {scales.dtype}, and {layout} has {wanted}")
    columns = scales.shape[1] * group
    bits, rest = divmod(codes.shape[1] * BITS[codes.dtype], columns)
    _require(module, rest == 0, f"{codes.shape[1]} bytes a row are no whole bits for {columns} columns")
    return _facts(module, layout, parts, shape=(codes.shape[0], columns), bits=bits)


def _gptq(module: str, layout: str, parts: Parts) -> PackedLinear:
    codes, scales = _part(module, parts, "qweight"), _part(module, parts, "scales")
    _part(module, parts, "qzeros")
    (columns,), rows = _part(module, parts, "g_idx").shape, codes.shape[1]
    _require(module, scales.shape[1] == rows, f"{scales.shape[1]} columns of scales for {rows} rows")
    return _facts(module, layout, parts, shape=(rows, columns), bits=_bits(module, codes.shape[0], columns))


def _awq(module: str, layout: str, parts: Parts) -> PackedLinear:
    codes, scales = _part(module, parts, "qweight"), _part(module, parts, "scales")
    _part(module, parts, "qzeros")
    columns, rows = codes.shape[0], scales.shape[1]
    return _facts(module, layout, parts, shape=(rows, columns), bits=_bits(module, codes.shape[1], rows))


LAYOUTS: dict[str, Callable[[str, str, Parts], PackedLinear]] = {
    "pack-quantized": _pack_quantized,
    "int-quantized": _plain_codes,
    "float-quantized": _plain_codes,
    "nvfp4-pack-quantized": _two_a_byte,
    "mxfp4-pack-quantized": _two_a_byte,
    "mxfp8-quantized": _plain_codes,
    "gptq": _gptq,
    "awq": _awq,
    **AUTOROUND_READERS,
    "hqq": read_hqq,
    **dict.fromkeys(LAYOUTS_OF_QUANTO, read_quanto),
    **dict.fromkeys(("bitsandbytes-nf4", "bitsandbytes-fp4"), read_4bit),
    "bitsandbytes-int8": read_int8,
    **dict.fromkeys(LAYOUTS_OF_TORCHAO, read_torchao),
}
CODES = ("weight_packed", "qweight", "weight")
SCALES = ("weight_scale", "scales", "weight_global_scale")
ZEROS = ("weight_zero_point", "qzeros")
NOT_QUANTIZED = ("bias",)


def _facts(module: str, layout: str, parts: Parts, *, shape: Shape, bits: int) -> PackedLinear:
    codes = next(parts[name] for name in CODES if name in parts)
    scales = next((parts[name] for name in SCALES if name in parts), None)
    if scales is None:
        raise ModelError(f"{module}: there are no scales beside its codes")
    known = {*CODES, *SCALES, *ZEROS, *NOT_QUANTIZED}
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=shape[0],
        columns=shape[1],
        bits=bits,
        group=_group(module, shape, scales, transposed=layout in ("gptq", "awq")),
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=sum(parts[name].bytes for name in SCALES if name in parts),
        zero_bytes=sum(parts[name].bytes for name in ZEROS if name in parts),
        other_bytes=sum(stored.bytes for name, stored in parts.items() if name not in known),
    )


def _group(module: str, shape: Shape, scales: Stored, *, transposed: bool) -> int | None:
    """Gives the columns that share a scale; None for a whole row, a whole matrix or a block."""
    if scales.elements == 1:
        return None
    rows, columns = shape
    across, groups = reversed(scales.shape) if transposed else scales.shape
    if across != rows:
        _require(module, math.ceil(rows / across) > 1, f"{across} rows of scales for {rows} rows")
        return None
    _require(module, 1 <= groups <= columns, f"{groups} scales a row for {columns} columns")
    return None if groups == 1 else math.ceil(columns / groups)


def _bits(module: str, words: int, weights: int) -> int:
    """Gives the bits a weight takes when `weights` of them fill `words` words of 32 bits, the last one perhaps not."""
    bits = words * 32 // weights
    _require(module, math.ceil(weights * bits / 32) == words, f"{words} words are no whole bits for {weights} weights")
    return bits


def _part(module: str, parts: Parts, name: str) -> Stored:
    if name not in parts:
        raise ModelError(f"{module}: {name} is missing; there are {', '.join(sorted(parts)) or 'no tensors'}")
    return parts[name]


def _pair(module: str, numbers: tuple[int, ...]) -> Shape:
    _require(module, len(numbers) == 2, f"its shape {list(numbers)} is no matrix")
    return numbers[0], numbers[1]


def _require(module: str, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ModelError(f"{module}: {otherwise}")
