"""How hqq's packed weights lie in our files, what the configuration says of each, and what their tensors say alone.

`W_q` holds the codes of a matrix whose lines are groups (axis 1: one group a row, scales (lines, 1)) or whose columns
are (axis 0: scales (1, groups)). Lines are packed, not columns: with k codes in a word, word p holds those of lines
p, p + P, p + 2 P and so on, P being the number of packed lines, the first in the highest bits. 1, 2, 4 and 8 bits lie
in bytes. 3 bits lie ten in 32 bits, the number of lines filled up to a multiple of ten, so a code takes 3.2 bits on
disk or a little more: `bits` is what a code can tell apart, the bytes are what they are. `weight_shape` is rows and
columns. A weight is (code - zero) * scale.

Source: `BitPack` and `Quantizer.dequantize` of hqq 0.2.8.post1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError
from harness.stages.quantize.proof.headers import BITS, Parts

if TYPE_CHECKING:
    from harness.stages.quantize.proof.declared import Claim
    from harness.stages.quantize.proof.layouts import PackedLinear

LAYOUT: Final = "hqq"
CODES_IN_A_WORD: Final = 10
"""3-bit codes in 32 bits."""
PARTS: Final = ("W_q", "scale", "zero", "weight_shape")


def claim_hqq(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what the configuration says about a linear module; None when it is not listed."""
    from harness.stages.quantize.proof.declared import Claim

    said = config["layers"].get(module)
    if said is None:
        return None
    return Claim(LAYOUT, int(said["bits"]), int(said["group_size"]) if said["axis"] == 1 else None)


def read_hqq(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of one weight. Raises ModelError when its tensors are not of this layout."""
    from harness.stages.quantize.proof.layouts import PackedLinear

    if lost := set(PARTS) - set(parts):
        raise ModelError(f"{module}: {', '.join(sorted(lost))} is missing; there are {', '.join(sorted(parts))}")
    codes, scales, shape = parts["W_q"], parts["scale"], parts["weight_shape"].values
    rows, columns = shape
    groups, weights = scales.elements, rows * columns
    if weights % groups or parts["zero"].shape != scales.shape or 1 not in scales.shape:
        raise ModelError(f"{module}: {list(scales.shape)} scales do not belong to {rows} x {columns} weights")
    lines = groups if scales.shape[1] == 1 else weights // groups
    group = weights // groups if scales.shape[1] == 1 else None
    if group is not None and columns % group:
        raise ModelError(f"{module}: groups of {group} do not lie within rows of {columns} columns")
    bits = _bits(module, codes.dtype, codes.shape, lines=lines, width=weights // lines)
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=rows,
        columns=columns,
        bits=bits,
        group=None if group == columns else group,
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=scales.bytes,
        zero_bytes=parts["zero"].bytes,
        other_bytes=parts["weight_shape"].bytes,
    )


def _bits(module: str, dtype: str, shape: tuple[int, ...], *, lines: int, width: int) -> int:
    """Gives the bits of a code from how many words there are for how many lines of codes."""
    if len(shape) == 2 and shape[1] == width:
        if dtype == "I32" and shape[0] == -(-lines // CODES_IN_A_WORD):
            return 3
        bits, rest = divmod(shape[0] * BITS[dtype], lines)
        if dtype == "U8" and rest == 0:
            return bits
    raise ModelError(f"{module}: {dtype} codes of shape {list(shape)} are no whole bits for {lines} x {width} weights")
