"""How quanto's packed weights lie in files, what the configuration says of each, and what their tensors say alone.

8 bits: `weight._data` I8 or F8_E4M3 (R, C) and `weight._scale` (R, 1); a weight is code * scale. 4 and 2 bits:
`weight._data._data` U8 holds the codes of a matrix with one line for each group, packed by lines: with k codes in a
byte, byte p holds those of lines p, p + P and so on, P being the number of packed lines, the first in the lowest bits.
`weight._scale` and `weight._shift` have one float a line, `weight_shape` is rows and columns; a weight is
code * scale - shift. `input_scale` is there where the layer's input is quantized.

Shapes: R rows (outputs), C columns (inputs). Source: `pack_weights`, `QBitsDequantizer` and `QBytesDequantizer` of
optimum-quanto 0.2.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError
from harness.stages.quantize.proof.headers import BITS, Parts

if TYPE_CHECKING:
    from harness.stages.quantize.proof.declared import Claim
    from harness.stages.quantize.proof.layouts import PackedLinear

TYPES: Final[Mapping[str, int]] = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}
"""Bits by type of weights."""
STORED: Final[Mapping[str, str]] = {"quanto-int8": "I8", "quanto-float8": "F8_E4M3"}
LAYOUTS_OF_QUANTO: Final = tuple(f"quanto-{weights}" for weights in TYPES)
WHOLE: Final = ("weight._data", "weight._scale")
PACKED: Final = ("weight._data._data", "weight._scale", "weight._shift", "weight_shape")


def claim_quanto(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what the configuration says about a linear module; None when it is not listed."""
    from harness.stages.quantize.proof.declared import Claim

    said = config["layers"].get(module)
    if said is None:
        return None
    activations = "8-bit int per tensor, static" if said["activations"] == "int8" else said["activations"]
    return Claim(f"quanto-{said['weights']}", TYPES[said["weights"]], said["group_size"], activations)


def read_quanto(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of one weight. Raises ModelError when its tensors are not of this layout."""
    from harness.stages.quantize.proof.layouts import PackedLinear

    needed = WHOLE if layout in STORED else PACKED
    if lost := set(needed) - set(parts):
        raise ModelError(f"{module}: {', '.join(sorted(lost))} is missing; there are {', '.join(sorted(parts))}")
    codes, scales = parts[needed[0]], parts["weight._scale"]
    rows, columns = codes.shape if layout in STORED else parts["weight_shape"].values
    lines = scales.elements
    if scales.shape != (lines, 1) or rows * columns % lines or lines % rows:
        raise ModelError(f"{module}: {list(scales.shape)} scales do not belong to {rows} x {columns} weights")
    group = rows * columns // lines
    shift = parts.get("weight._shift")
    known = {needed[0], "weight._scale", "weight._shift", "bias"}
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=rows,
        columns=columns,
        bits=_bits(module, layout, (codes.dtype, codes.shape), lines=(lines, group)),
        group=None if group == columns else group,
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=scales.bytes,
        zero_bytes=0 if shift is None else shift.bytes,
        other_bytes=sum(stored.bytes for part, stored in parts.items() if part not in known),
    )


def _bits(module: str, layout: str, codes: tuple[str, tuple[int, ...]], *, lines: tuple[int, int]) -> int:
    """Gives the bits of a code, from the type where a code fills it, else from how many bytes there are for a line."""
    (dtype, shape), (count, width) = codes, lines
    if dtype != STORED.get(layout, "U8"):
        raise ModelError(f"{module}: stored as {dtype}, and {layout} is {STORED.get(layout, 'U8')}")
    if layout in STORED:
        return BITS[dtype]
    bits, rest = divmod(shape[0] * BITS[dtype], count)
    if shape[1:] != (width,) or rest:
        raise ModelError(f"{module}: codes of shape {list(shape)} are no whole bits for {count} x {width} weights")
    return bits
