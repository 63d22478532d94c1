"""Integer grids for groups of weights: the arithmetic that round-to-nearest, GPTQ and AWQ share.

A row of a weight matrix is cut into groups of consecutive columns. Each group has a scale and an integer zero point,
and a weight is stored as the code of the nearest grid point: `code = clamp(round(w / scale) + zero, 0, 2^bits - 1)` and
back `w' = (code - zero) * scale`. Every |w - w'| is at most scale / 2.

    asymmetric   scale = (max(w, 0) - min(w, 0)) / (2^bits - 1)      zero = round(-min(w, 0) / scale)
    symmetric    scale = max|w| / ((2^bits - 1) / 2)                 zero = 2^(bits - 1)

Source: `Quantizer` in IST-DASLab/gptq (`quant.py`) and `calculate_qparams` in compressed-tensors 0.19, which agree.
Known disagreement: others (TensorRT, AWQ's symmetric mode) divide max|w| by 2^(bits - 1) - 1, which leaves the lowest
code unused, is idempotent, and has a coarser grid. Here a symmetric group's largest weight lies half a step outside the
last code when it is positive; quantizing the result afresh finds another grid (on the *same* grid nothing moves).

Shapes: R rows, C columns, G = ceil(C / group) groups a row. When `group` does not divide C the last group is shorter,
as in GPTQ's own code and GPTQModel; llm-compressor, AWQ and torchao refuse such layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """A quantized matrix: codes (R, C) uint8, scales (R, G) float32, zero points (R, G) float32 with integer values."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class Grid:
    """How fine and how local a grid is: `bits` 1 to 8, columns in a `group` (None: a whole row), symmetric or not."""

    bits: int
    group: int | None
    symmetric: bool

    @property
    def levels(self) -> int:
        """Gives the largest code."""
        return 2**self.bits - 1

    def groups(self, columns: int) -> int:
        """Gives how many groups a row has."""
        return 1 if self.group is None else math.ceil(columns / self.group)

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Gives what a matrix weighs packed: codes, and for each group a 16-bit scale and, asymmetric, a zero point."""
        scale_bits = 16 + (0 if self.symmetric else self.bits)
        return math.ceil((rows * columns * self.bits + rows * self.groups(columns) * scale_bits) / 8)


def quantize_groups(weight_RC: Tensor, grid: Grid) -> Codes:
    """Gives the nearest codes on the grid that each group's own range defines; computed in float32.

    A group of zeros gets scale 1, so that it stays zero.
    """
    scales_RG, zeros_RG = group_ranges(weight_RC, grid)
    return encode(weight_RC, scales_RG, zeros_RG, grid)


def group_ranges(weight_RC: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Gives scales and zero points (R, G) by the equations above."""
    # Zeros that fill the last group change nothing: zero is inside every range by definition.
    grouped_RGK = _grouped(weight_RC.float(), grid)
    low_RG = grouped_RGK.amin(dim=-1).clamp(max=0)
    high_RG = grouped_RGK.amax(dim=-1).clamp(min=0)
    if grid.symmetric:
        scales_RG = torch.maximum(high_RG, -low_RG) / (grid.levels / 2)
    else:
        scales_RG = (high_RG - low_RG) / grid.levels
    scales_RG = torch.where(scales_RG == 0, torch.ones_like(scales_RG), scales_RG)
    if grid.symmetric:
        return scales_RG, torch.full_like(scales_RG, 2 ** (grid.bits - 1))
    return scales_RG, (-low_RG / scales_RG).round().clamp(0, grid.levels)


def encode(weight_RC: Tensor, scales_RG: Tensor, zeros_RG: Tensor, grid: Grid) -> Codes:
    """Gives the nearest codes on a given grid; weights outside it go to its ends. Ties go to the even multiple."""
    grouped_RGK = _grouped(weight_RC.float(), grid)
    codes_RGK = (grouped_RGK / scales_RG[..., None]).round() + zeros_RG[..., None]
    codes_RC = codes_RGK.clamp(0, grid.levels).to(torch.uint8).flatten(1)[:, : weight_RC.shape[1]]
    return Codes(codes_RC, scales_RG, zeros_RG)


def dequantize(quantized: Codes, grid: Grid) -> Tensor:
    """Gives the float32 weights (R, C) that the codes stand for."""
    columns = quantized.codes.shape[1]
    codes_RGK = _grouped(quantized.codes.float(), grid)
    weight_RGK = (codes_RGK - quantized.zeros[..., None]) * quantized.scales[..., None]
    return weight_RGK.flatten(1)[:, :columns]


def _grouped(matrix_RC: Tensor, grid: Grid) -> Tensor:
    """Gives (R, G, K) with the last group filled up with zeros."""
    rows, columns = matrix_RC.shape
    groups = grid.groups(columns)
    width = grid.group or columns
    filled = torch.nn.functional.pad(matrix_RC, (0, groups * width - columns))
    return filled.reshape(rows, groups, width)
