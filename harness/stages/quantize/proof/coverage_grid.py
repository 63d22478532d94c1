"""The coverage proof of a folder of format `grid`: what its weights would be if they were packed.

The weights lie unpacked, each on a declared grid that was checked against them; the bytes are those of packing them as
`Grid.packed_bytes` counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import Coverage, PlainTensor, plain_tensors, total
from harness.stages.quantize.proof.headers import Stored, read_headers
from harness.stages.quantize.proof.layouts import PackedLinear

if TYPE_CHECKING:
    from harness.stages.quantize.grid import Grid

SCALE_BITS = 16


def prove_grid(folder: Path, grids: Mapping[str, Grid], architecture: Architecture) -> Coverage:
    """Gives what a folder's weights would take when those on grids, by their names, are packed."""
    packed: list[PackedLinear] = []
    plain: list[PlainTensor] = []
    for module, parts in read_headers(folder).items():
        for part, stored in parts.items():
            if f"{module}.{part}" in grids:
                packed.append(_packed(module, stored, grids[f"{module}.{part}"]))
            else:
                plain.extend(plain_tensors(module, {part: stored}, architecture))
    return total("grid (emulated)", packed, plain, architecture)


def _packed(module: str, stored: Stored, grid: Grid) -> PackedLinear:
    rows, columns = stored.shape
    groups = grid.groups(columns)
    codes, scales = math.ceil(rows * columns * grid.bits / 8), rows * groups * SCALE_BITS // 8
    return PackedLinear(
        module=module,
        layout="grid",
        storage=stored.dtype,
        rows=rows,
        columns=columns,
        bits=grid.bits,
        group=None if groups == 1 else grid.group,
        scale_type="F16",
        scales=(rows, groups),
        code_bytes=codes,
        scale_bytes=scales,
        zero_bytes=grid.packed_bytes(rows, columns) - codes - scales,
        other_bytes=0,
    )
