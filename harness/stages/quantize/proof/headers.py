"""What a folder of safetensors files holds, from their headers alone: names, storage types, shapes and bytes.

A header says how many bits lie on disk and cannot flatter: a weight that is called 4-bit and stored in 8 bits shows.
Nothing is loaded but the few numbers in which some layouts write down a matrix's logical shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ModelError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
"""Bits of one element by the name that a safetensors header gives its type."""

PLAIN_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Types that a weight has when nobody packed it."""


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file. `values` are its numbers where it is a logical shape, else nothing."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * BITS[self.dtype] // 8


Parts = dict[str, Stored]
"""The tensors of one module by the rest of their names (`weight_packed`, `weight_scale`, `weight.absmax`)."""
SHAPES = ("weight_shape", "weight.quant_state.bitsandbytes__")
"""Parts that are read: they tell the logical shape, bitsandbytes' as the bytes of a text."""
INSIDE_WEIGHT = ".weight."
"""What stands in the name of a tensor that belongs to another, as bitsandbytes and quanto name their scales."""


def read_headers(folder: Path) -> dict[str, Parts]:
    """Gives the tensors of all safetensors files in the folder by module. Raises ModelError when a name comes twice."""
    from safetensors import safe_open

    modules: dict[str, Parts] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118
                piece = opened.get_slice(name)
                dtype, shape = piece.get_dtype(), tuple(piece.get_shape())
                if dtype not in BITS:
                    raise ModelError(f"{name} is stored as {dtype}, whose size is not known here")
                module, part = _split(name)
                if part in modules.setdefault(module, {}):
                    raise ModelError(f"{name} is stored twice")
                values = tuple(int(n) for n in opened.get_tensor(name)) if part.startswith(SHAPES) else ()
                modules[module][part] = Stored(dtype, shape, values)
    return modules


def _split(name: str) -> tuple[str, str]:
    """Gives the module and the part of a tensor's name; what lies inside a weight is part of the weight's module."""
    module, inside, rest = name.partition(INSIDE_WEIGHT)
    if inside:
        return module, f"weight.{rest}"
    module, _, part = name.rpartition(".")
    return module, part
