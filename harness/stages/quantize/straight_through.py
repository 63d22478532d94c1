"""Fake quantization: weights and inputs are rounded as they will be stored, and gradients pass as if they were not.

Rounding has no slope, so a model that is trained with rounded weights is trained straight through: the gradient at a
rounded value is handed to the value it was rounded from, 1 inside the range of the codes and 0 outside. A half step
beyond the last code is inside, since it is rounded to that code like any other value. What is rounded to is what the
files will hold and a runtime will compute with: steps in the type in which they are stored, products rounded to it.

    integers   code = clamp(round(v / step), -2^(bits-1), 2^(bits-1) - 1), step = max|v| / ((2^bits - 1) / 2)
    NVFP4      g = 6 * 448 / max|matrix| (float32); scale = E4M3(g * max|v| / 6) for 16 columns, 1/8 where that is 0;
               step = scale / g; code = the nearest E2M1 value of v / step, ties to the even code
    LSQ        step is learned: d(code * step)/d(step) = round(v / step) - v / step inside, the last code outside,
               both times 1 / sqrt(N * Qp)

The arithmetic, with the types in which intermediate results are rounded, is that of compressed-tensors 0.19, so that
what is trained is bit for bit what its files decode to. Sources: Bengio et al., arXiv 1308.3432; LSQ, arXiv 1902.08153,
equations 1 to 5 and section 2.2; NVFP4 in nvidia-modelopt (`nvfp4_tensor.py`); `calculate_qparams`, `_quantize` and
`_dequantize` in compressed-tensors.

Shapes: R rows, C columns, G groups a row, K columns of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Parameters = dict[str, Tensor]
"""What is stored beside a layer's codes, by the names of compressed-tensors (`weight_scale`)."""

E2M1_LARGEST, E4M3_LARGEST = 6.0, 448.0
NVFP4_GROUP = 16
NVFP4_INSIDE = 7.0
"""Half a step beyond the largest E2M1 value: the step between 4 and 6 is 2."""
E4M3_INSTEAD_OF_ZERO = 0.125


def pass_through(value: Tensor, rounded: Tensor, inside: Tensor) -> Tensor:
    """Gives exactly `rounded`; the gradient goes to `value` where `inside` is true and nowhere else."""
    passing = torch.where(inside, value, value.detach())
    return rounded.detach() + (passing - passing.detach())


def kept_as(value: Tensor, stored: torch.dtype) -> Tensor:
    """Gives the value rounded to a float type, in its own type; the gradient passes everywhere."""
    return pass_through(value, value.to(stored).to(value.dtype), torch.ones_like(value, dtype=torch.bool))


def nearest_e2m1(value: Tensor) -> Tensor:
    """Gives the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives, ties to the even code; cut at 6."""
    cut = value.clamp(-E2M1_LARGEST, E2M1_LARGEST)
    size = cut.abs()
    # Between powers of two the values are evenly spaced, and a tie goes to the even multiple, which is the even code.
    spacing = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (cut / spacing).round() * spacing


def integer_steps(value: Tensor, bits: int) -> Tensor:
    """Gives max|v| / ((2^bits - 1) / 2) over the last dimension, in the value's type; its epsilon where that is 0."""
    steps = value.abs().amax(dim=-1) / torch.tensor((2**bits - 1) / 2, dtype=value.dtype, device=value.device)
    return torch.where(steps == 0, torch.finfo(value.dtype).eps, steps)


def nvfp4_scales(value: Tensor, global_scale: Tensor) -> Tensor:
    """Gives E4M3(g * max|v| / 6) over the last dimension, as float32."""
    scales = (value.abs().amax(dim=-1) / E2M1_LARGEST).float() * global_scale
    scales = scales.clamp(max=E4M3_LARGEST).to(torch.float8_e4m3fn).float()
    return torch.where(scales == 0, E4M3_INSTEAD_OF_ZERO, scales)


class WeightRounding(Protocol):
    """A parametrization of a layer's weight, and what is stored beside its codes."""

    def forward(self, weight_RC: Tensor) -> Tensor:
        """Gives the rounded weights (R, C) in the type of `weight_RC`."""

    def parameters_stored(self, weight_RC: Tensor) -> Parameters:
        """Gives scales as they will lie in the files."""


class IntegerWeight(nn.Module):
    """Symmetric integers with steps (R, G) that are given, or that follow the largest weights as they are trained."""

    def __init__(self, bits: int, group: int | None, *, stored: torch.dtype, steps_RG: Tensor | None = None) -> None:
        super().__init__()
        self.bits, self.group, self.stored = bits, group, stored
        self.steps_RG = None if steps_RG is None else steps_RG.float()

    def forward(self, weight_RC: Tensor) -> Tensor:
        """Gives the rounded weights (R, C)."""
        with torch.no_grad():
            steps_RG1 = self._steps(weight_RC)[..., None]
            codes_RGK = grouped(weight_RC, self.group) / steps_RG1
            low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
            inside_RGK = (codes_RGK >= low - 0.5) & (codes_RGK <= high + 0.5)
            rounded_RGK = (codes_RGK.clamp(low, high).round() * steps_RG1).to(self.stored).to(weight_RC.dtype)
        return pass_through(weight_RC, rounded_RGK.flatten(1), inside_RGK.flatten(1))

    def parameters_stored(self, weight_RC: Tensor) -> Parameters:
        """Gives the steps."""
        return {"weight_scale": self._steps(weight_RC.detach())}

    def _steps(self, weight_RC: Tensor) -> Tensor:
        if self.steps_RG is not None:
            return self.steps_RG.to(weight_RC.device)
        return integer_steps(grouped(weight_RC, self.group).to(self.stored), self.bits).float()


class Nvfp4Weight(nn.Module):
    """E2M1 values with a fixed scale for the matrix, and E4M3 scales (R, G) that are given or follow the weights."""

    stored: torch.dtype = torch.bfloat16

    def __init__(self, global_scale: Tensor, *, scales_RG: Tensor | None = None) -> None:
        super().__init__()
        self.global_scale = global_scale.float()
        self.scales_RG = None if scales_RG is None else scales_RG.float()

    def forward(self, weight_RC: Tensor) -> Tensor:
        """Gives the rounded weights (R, C)."""
        with torch.no_grad():
            steps_RG1 = (self._scales(weight_RC) / self.global_scale.to(weight_RC.device))[..., None]
            values_RGK = grouped(weight_RC, NVFP4_GROUP) / steps_RG1
            rounded_RGK = (nearest_e2m1(values_RGK) * steps_RG1).to(self.stored).to(weight_RC.dtype)
        return pass_through(weight_RC, rounded_RGK.flatten(1), (values_RGK.abs() <= NVFP4_INSIDE).flatten(1))

    def parameters_stored(self, weight_RC: Tensor) -> Parameters:
        """Gives the matrix's scale and those of the groups."""
        return {"weight_scale": self._scales(weight_RC.detach()), "weight_global_scale": self.global_scale}

    def _scales(self, weight_RC: Tensor) -> Tensor:
        if self.scales_RG is not None:
            return self.scales_RG.to(weight_RC.device)
        return nvfp4_scales(grouped(weight_RC, NVFP4_GROUP).to(self.stored), self.global_scale.to(weight_RC.device))


class LearnedStep(nn.Module):
    """LSQ: symmetric integers whose steps are trained with the weights; they start at 2 mean|v| / sqrt(Qp).

    The paper scales the gradient so that a step of descent moves the step size by as large a part of itself as it moves
    the weights. AdamW moves every number by the learning rate, whatever the scale of its gradient, so what is trained
    here is the step size in units of the group's weights (root mean square): step = size * ratio, size starting at
    that root mean square. The gradient of the step is the paper's.
    """

    def __init__(self, weight_RC: Tensor, *, bits: int, group: int | None, stored: torch.dtype) -> None:
        super().__init__()
        self.bits, self.group, self.stored = bits, group, stored
        values_RGK = grouped(weight_RC.detach(), group).float()
        size_RG1 = _one_where_zero(values_RGK.square().mean(dim=-1, keepdim=True).sqrt())
        start_RG1 = _one_where_zero(2 * values_RGK.abs().mean(dim=-1, keepdim=True) / math.sqrt(self.highest))
        # Three dimensions, because Muon would take a matrix for one that multiplies inputs.
        self.size_RG1 = nn.Parameter(size_RG1)
        self.ratio_RG1 = start_RG1 / size_RG1
        self.least_RG1 = start_RG1 / 1000

    @property
    def highest(self) -> int:
        """Qp: the largest code."""
        return int(2 ** (self.bits - 1)) - 1

    def steps(self) -> Tensor:
        """Gives the steps (R, G, 1) in float32, rounded to the type in which they are stored."""
        on = self.size_RG1.device
        return kept_as((self.size_RG1 * self.ratio_RG1.to(on)).clamp(min=self.least_RG1.to(on)), self.stored)

    def forward(self, weight_RC: Tensor) -> Tensor:
        """Gives the rounded weights (R, C)."""
        values_RGK = grouped(weight_RC, self.group)
        steps_RG1 = _with_gradient_times(self.steps(), 1 / math.sqrt(values_RGK.shape[-1] * self.highest))
        return kept_as(lsq(values_RGK, steps_RG1, bits=self.bits), self.stored).flatten(1)

    def parameters_stored(self, weight_RC: Tensor) -> Parameters:
        """Gives the learned steps."""
        return {"weight_scale": self.steps().detach()[..., 0].to(weight_RC.device)}


def lsq(value: Tensor, step: Tensor, *, bits: int) -> Tensor:
    """Gives clamp(round(v / step), -2^(bits-1), 2^(bits-1) - 1) * step with LSQ's gradients, its scale factor apart."""
    cut = (value / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # The product's derivative in the step is code - v / step where v / step is not cut, and the code where it is.
    return pass_through(cut, cut.round(), torch.ones_like(cut, dtype=torch.bool)) * step


def _one_where_zero(value: Tensor) -> Tensor:
    return torch.where(value == 0, 1.0, value)


def _with_gradient_times(value: Tensor, factor: float) -> Tensor:
    return value.detach() + (value - value.detach()) * factor


def int8_inputs(input_BTC: Tensor) -> Tensor:
    """Gives inputs rounded to symmetric 8-bit integers with a step for every token; the gradient passes everywhere."""
    steps_BT1 = integer_steps(input_BTC.detach(), 8)[..., None]
    rounded_BTC = (input_BTC.detach() / steps_BT1).clamp(-128, 127).round() * steps_BT1
    return pass_through(input_BTC, rounded_BTC, torch.ones_like(input_BTC, dtype=torch.bool))


def nvfp4_inputs(input_BTC: Tensor, global_scale: Tensor) -> Tensor:
    """Gives inputs rounded to NVFP4 with scales that follow them, under a fixed scale for the whole matrix."""
    values_BTGK = input_BTC.detach().unflatten(-1, (-1, NVFP4_GROUP))
    steps_BTG1 = (nvfp4_scales(values_BTGK, global_scale) / global_scale)[..., None]
    values_BTGK = values_BTGK / steps_BTG1
    rounded_BTC = (nearest_e2m1(values_BTGK) * steps_BTG1).flatten(-2).to(input_BTC.dtype)
    return pass_through(input_BTC, rounded_BTC, (values_BTGK.abs() <= NVFP4_INSIDE).flatten(-2))


def round_weights(model: nn.Module, roundings: Mapping[str, nn.Module]) -> None:
    """Lets the model compute with rounded weights, which train what they are rounded from."""
    for layer, rounding in roundings.items():
        parametrize.register_parametrization(model.get_submodule(layer), "weight", rounding, unsafe=True)


def round_inputs(model: nn.Module, roundings: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
    """Lets layers see rounded inputs, from now on."""
    for layer, rounding in roundings.items():
        module = model.get_submodule(layer)
        module.register_forward_pre_hook(lambda _, seen, rounding=rounding: (rounding(seen[0]), *seen[1:]))


def settle_weights(model: nn.Module, layers: Sequence[str]) -> dict[str, Parameters]:
    """Ends training: weights become what they are rounded to; gives what is to be stored beside the codes, by layer."""
    handed = {}
    for layer in layers:
        module: Any = model.get_submodule(layer)
        parts = module.parametrizations.weight
        with torch.no_grad():
            handed[layer] = cast("WeightRounding", parts[0]).parameters_stored(parts.original)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return handed


def grouped(matrix_RC: Tensor, group: int | None) -> Tensor:
    """Gives (R, G, K); a group is a whole row where none is given, and must divide the columns otherwise."""
    return matrix_RC.unflatten(-1, (-1, group or matrix_RC.shape[-1]))
