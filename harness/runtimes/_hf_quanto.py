"""Opens folders of `quantize.quanto`: codes stay packed in memory, and quanto's own products are run on them.

The library can write a model to a folder and open it again, but then quantizes the outputs of all layers, which its
calibration had turned off, and its 4-bit tensors cannot be multiplied in torch's inference mode. So the layers here are
plain modules that hold the library's codes and scales and call its operators.

Shapes: R rows (outputs), C columns (inputs), G groups, M columns in a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import CorruptArtifact
from harness.runtimes._hf_native_model import Folder, build_empty, fill, read_tensors, take

BITS: Mapping[str, int] = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}
"""Bits by type of weights."""


class QuantoLinear(torch.nn.Module):
    """A linear layer whose weight lies packed, and whose input is rounded to 8 bits where it has an `input_scale`.

    int8 weights are multiplied as the library does it: with int8 inputs as integers, with bfloat16 inputs on the host
    by a kernel for packed weights. All others are unpacked in every pass.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, parts: Mapping[str, Tensor], said: Mapping[str, Any], *, shape: torch.Size) -> None:
        super().__init__()
        import optimum.quanto  # noqa: F401  # defines the operators

        self.out_features, self.in_features = shape
        self._bits = BITS[said["weights"]]
        self.register_buffer("codes", parts["weight._data" if self._bits == 8 else "weight._data._data"])
        self.register_buffer("scale", parts["weight._scale"])
        for name, part in (("shift", "weight._shift"), ("input_scale", "input_scale"), ("bias", "bias")):
            self.register_buffer(name, parts.get(part))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self._multiply_codes(inputs) if self._bits == 8 else self._multiply_unpacked(inputs)
        return outputs if self.bias is None else outputs + self.bias

    def _multiply_codes(self, inputs: Tensor) -> Tensor:
        rows_NC, scale = inputs.reshape(-1, self.in_features), self.scale
        if self.input_scale is not None:
            rows_NC, scale = self._rounded(rows_NC), self.input_scale * scale
        product: Tensor = torch.ops.quanto.qbytes_mm(rows_NC, self.codes, scale)
        return product.reshape(*inputs.shape[:-1], self.out_features)

    def _multiply_unpacked(self, inputs: Tensor) -> Tensor:
        if self.input_scale is not None:
            inputs = self._rounded(inputs) * self.input_scale
        return torch.matmul(inputs, self.unpacked().t())

    def _rounded(self, inputs: Tensor) -> Tensor:
        codes: Tensor = torch.ops.quanto.quantize_symmetric(inputs, dtype=torch.int8, axis=None, scale=self.input_scale)
        return codes

    @property
    def writes_out_floats(self) -> bool:
        """True where the host multiplies the weight only after it was written out in floats."""
        by_kernel = self.input_scale is not None or self.scale.dtype == torch.bfloat16
        return self.codes.dtype != torch.int8 or not by_kernel

    def unpacked(self) -> Tensor:
        """Gives the weight (R, C) of a layer with less than 8 bits."""
        mask = 2**self._bits - 1
        codes_GM = torch.cat([(self.codes >> shift) & mask for shift in range(0, 8, self._bits)])
        assert self.shift is not None
        weight_GM = codes_GM * self.scale - self.shift
        return weight_GM.reshape(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self._bits}"


def read_quanto(folder: Folder) -> PreTrainedModel:
    """Gives the model with every layer that the configuration lists as a `QuantoLinear`."""
    model, tensors = build_empty(folder), read_tensors(folder.path)
    layers: Mapping[str, Mapping[str, Any]] = folder.quantization["layers"]
    for name, said in layers.items():
        linear: Any = model.get_submodule(name)
        parts = take(tensors, name)
        _require_parts(name, parts, said, linear)
        held = {part: _in_type(part, tensor, linear.weight.dtype) for part, tensor in parts.items()}
        model.set_submodule(name, QuantoLinear(held, said, shape=linear.weight.shape), strict=True)
    fill(model, tensors, packed=set(layers))
    return model


def _in_type(part: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Gives scales in the type that the model computes in, and codes, which may be floats of 8 bits, as they are."""
    return tensor if part.startswith("weight._data") or part == "weight_shape" else tensor.to(dtype)


def _require_parts(name: str, parts: Mapping[str, Tensor], said: Mapping[str, Any], linear: Any) -> None:
    """Raises CorruptArtifact unless the tensors are those of such a layer, to the last row."""
    rows, columns = linear.weight.shape
    group, bits = said["group_size"] or columns, BITS[said["weights"]]
    lines = rows * columns // group
    shapes: dict[str, tuple[int, ...]] = {"weight._data": (rows, columns), "weight._scale": (rows, 1)}
    if bits < 8:
        shapes = {"weight._data._data": (lines * bits // 8, group), "weight_shape": (2,)}
        shapes |= {"weight._scale": (lines, 1), "weight._shift": (lines, 1)}
    if said["activations"] is not None:
        shapes["input_scale"] = ()
    if linear.bias is not None:
        shapes["bias"] = (rows,)
    found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if found != shapes:
        raise CorruptArtifact(f"{name} has tensors of shapes {found}, and its configuration asks for {shapes}")
