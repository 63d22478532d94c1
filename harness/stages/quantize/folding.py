"""Fake quantizers turned into plain weights, and the proof from those weights that rounding really took place.

A library that emulates keeps weights as they were and rounds them in every forward pass; folding bakes the rounding
into the weights. What comes out is held against the format, layer by layer: a quantizer that was never enabled, or that
fell back to another format, leaves weights that do not lie where the format's numbers lie, and that fails.

    integers   (R, C) in groups of columns: w = code * amax / (2^(bits-1) - 1), the convention that leaves the lowest
               code unused, so at most 2^bits - 1 levels in a group
    fp8        w = e4m3 * amax / 448, one scale for the matrix
    e2m1       every block of columns is a scale times one of 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives

Shapes: R rows, C columns, G groups a row, K columns in a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.stages.quantize.grid import Grid, dequantize, encode
from harness.stages.quantize.proof.layouts import PackedLinear

Kind = Literal["integers", "fp8", "e2m1"]
E4M3_MAX: Final = 448.0
E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCALE_TYPES: Final[Mapping[Kind, str]] = {"integers": "F16", "fp8": "F32", "e2m1": "F8"}
SCALE_BYTES: Final[Mapping[Kind, int]] = {"integers": 2, "fp8": 4, "e2m1": 1}
EPSILON: Final = torch.finfo(torch.float32).eps
TINY: Final = torch.finfo(torch.float32).tiny
ULPS: Final = 4
"""Roundings of float32 by which two ways to write code times scale may differ."""


@dataclass(frozen=True)
class Folded:
    """One weight after folding: which numbers it may be, its largest magnitudes before rounding, and what it is now.

    The weight is in float32. `group` are the columns that share a scale, None a whole row (integers) or the whole
    matrix (fp8). `input_scale_C` is what the library multiplies the layer's inputs with, for AWQ.
    """

    kind: Kind
    bits: int
    group: int | None
    amax: Tensor | None
    weight_RC: Tensor
    input_scale_C: Tensor | None = None

    @property
    def grid(self) -> Grid | None:
        """The integer grid that the weight lies on; None for floats, and where the layer's inputs are scaled."""
        is_plain = self.kind == "integers" and self.input_scale_C is None
        return self._grid if is_plain else None

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Gives the steps (R, G) of the integer grid, 1 for groups of zeros, and its zero points (R, G): the middle."""
        assert self.amax is not None
        amax_RG = self.amax.float().reshape(len(self.weight_RC), -1)
        # The library rounds groups whose largest weight is not over 2^-24 to zero.
        scales_RG = torch.where(amax_RG <= 2.0**-24, torch.ones_like(amax_RG), amax_RG / (2 ** (self.bits - 1) - 1))
        return scales_RG, torch.full_like(scales_RG, 2 ** (self.bits - 1))

    def settled(self) -> Tensor:
        """Gives the weight (R, C) in float32, exactly where the format has it.

        Raises ModelError when it is further from there than rounding in float32 explains.
        """
        if self.kind != "e2m1" and self.amax is None:
            raise ModelError("the quantizer has no range: it was never calibrated")
        nearest_RC = self._nearest(self.weight_RC)
        allowed_RC = self.weight_RC.abs() * (ULPS * EPSILON) + TINY
        off_RC = ~((nearest_RC - self.weight_RC).abs() <= allowed_RC)  # a NaN is off, too
        if bool(off_RC.any()):
            share = float(off_RC.float().mean())
            raise ModelError(f"{share:.1%} of its weights are no {self.bits}-bit {self.kind}: they were not rounded")
        return nearest_RC

    def plain(self) -> Tensor:
        """Gives the weight (R, C) in float32 that computes the same without scaled inputs."""
        settled_RC = self.settled()
        return settled_RC if self.input_scale_C is None else settled_RC * self.input_scale_C.float()

    @property
    def most_levels(self) -> int:
        """Counts the different values among weights that share a scale, where there are most of them."""
        if self.kind == "fp8":
            return len(self.weight_RC.unique())
        return most_levels(self.weight_RC, self.group or self.weight_RC.shape[1])

    def as_packed(self, module: str, layout: str) -> PackedLinear:
        """Gives the facts of the weight as if it were packed."""
        rows, columns = self.weight_RC.shape
        groups = columns // self.group if self.group else 1
        codes = math.ceil(rows * columns * self.bits / 8)
        factors = 0 if self.input_scale_C is None else 2 * columns
        return PackedLinear(
            module=module,
            layout=layout,
            storage="emulated",
            rows=rows,
            columns=columns,
            bits=self.bits,
            group=None if groups == 1 else self.group,
            scale_type=SCALE_TYPES[self.kind],
            scales=(1,) if self.kind == "fp8" else (rows, groups),
            code_bytes=codes,
            scale_bytes=SCALE_BYTES[self.kind] * (1 if self.kind == "fp8" else rows * groups),
            zero_bytes=0,
            other_bytes=factors,
        )

    @property
    def _grid(self) -> Grid:
        return Grid(self.bits, self.group, symmetric=True)

    def _nearest(self, weight_RC: Tensor) -> Tensor:
        if self.kind == "integers":
            return dequantize(encode(weight_RC, *self.ranges(), self._grid), self._grid)
        if self.kind == "fp8":
            assert self.amax is not None
            scale = self.amax.float().reshape(-1)[0] / E4M3_MAX
            return (weight_RC / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale
        assert self.group is not None
        return nearest_e2m1(weight_RC, self.group)


def nearest_e2m1(weight_RC: Tensor, block: int) -> Tensor:
    """Gives the nearest weights of which every block is a scale times 4-bit floats.

    The scale is not known: a block's largest weight is 6 steps, or, where shared exponents are rounded, 4. The nearer
    of the two counts.
    """
    grouped_RGK = weight_RC.unflatten(1, (-1, block))
    values = torch.tensor(E2M1, device=weight_RC.device)
    middles = (values[1:] + values[:-1]) / 2
    tried = []
    for top in (6.0, 4.0):
        step_RG1 = grouped_RGK.abs().amax(dim=-1, keepdim=True) / top
        step_RG1 = torch.where(step_RG1 == 0, torch.ones_like(step_RG1), step_RG1)
        codes_RGK = torch.bucketize((grouped_RGK / step_RG1).abs(), middles)
        tried.append(values[codes_RGK] * step_RG1 * grouped_RGK.sign())
    errors = [(one - grouped_RGK).abs().amax(dim=-1, keepdim=True) for one in tried]
    return torch.where(errors[0] <= errors[1], tried[0], tried[1]).flatten(1)


def most_levels(weight_RC: Tensor, group: int) -> int:
    """Counts the different values in the group of `group` columns that has most of them; a last one may be shorter."""
    most = 0
    for piece_RK in weight_RC.split(group, dim=1):
        sorted_RK = piece_RK.sort(dim=1).values
        most = max(most, 1 + int((sorted_RK.diff(dim=1) != 0).sum(dim=1).max()))
    return most
