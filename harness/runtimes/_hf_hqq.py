"""Opens folders of `quantize.hqq`: codes stay packed in memory, and hqq's own code unpacks them in every pass.

Shapes: R rows (outputs), C columns (inputs), G groups, M weights in a group, P packed rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import CorruptArtifact
from harness.runtimes._hf_native_model import Folder, build_empty, fill, read_tensors, take

PARTS = frozenset({"W_q", "scale", "zero", "weight_shape"})


class HqqLinear(torch.nn.Module):
    """A linear layer whose weight lies packed: codes (P, M) or (P, G), a scale and a zero point for each group.

    Computes what `HQQLinear` of hqq computes with its `pytorch` backend; unlike there, scales are buffers, so they move
    with the model and count as memory.
    """

    W_q: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, parts: Mapping[str, Tensor], said: Mapping[str, Any], *, dtype: torch.dtype) -> None:
        super().__init__()
        from hqq.core.quantize import Quantizer

        self._dequantize = Quantizer.dequantize
        bits, axis = said["bits"], said["axis"]
        rows, columns = (int(size) for size in parts["weight_shape"])
        self.out_features, self.in_features = rows, columns
        packing = Quantizer.bit_to_packing[bits]
        self._meta: dict[str, Any] = {
            "nbits": bits, "axis": axis, "group_size": said["group_size"], "shape": torch.Size((rows, columns)),
            "packing": packing, "view_as_float": False, "compute_dtype": dtype,
        }  # fmt: skip
        self.register_buffer("W_q", parts["W_q"])
        self.register_buffer("scale", parts["scale"].to(dtype))
        self.register_buffer("zero", parts["zero"].to(dtype))
        bias = parts.get("bias")
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        weight_RC: Tensor = self._dequantize(self.W_q, {**self._meta, "scale": self.scale, "zero": self.zero})
        outputs = torch.matmul(inputs, weight_RC.t())
        return outputs if self.bias is None else outputs + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._meta['packing']}"


def read_hqq(folder: Folder) -> PreTrainedModel:
    """Gives the model with every layer that the configuration lists as an `HqqLinear`."""
    model, tensors = build_empty(folder), read_tensors(folder.path)
    layers: Mapping[str, Mapping[str, Any]] = folder.quantization["layers"]
    for name, said in layers.items():
        linear: Any = model.get_submodule(name)
        parts = take(tensors, name)
        _require_parts(name, parts, said, linear)
        model.set_submodule(name, HqqLinear(parts, said, dtype=linear.weight.dtype), strict=True)
    fill(model, tensors, packed=set(layers))
    return model


def _require_parts(name: str, parts: Mapping[str, Tensor], said: Mapping[str, Any], linear: Any) -> None:
    """Raises CorruptArtifact unless the tensors are those of such a layer, to the last row."""
    wanted = PARTS | (set() if linear.bias is None else {"bias"})
    if set(parts) != wanted:
        raise CorruptArtifact(f"{name} has the tensors {sorted(parts)}, and an hqq layer has {sorted(wanted)}")
    weights, group = linear.weight.numel(), said["group_size"]
    lines, width = (group, weights // group) if said["axis"] == 0 else (weights // group, group)
    codes_in_a_word = 10 if said["bits"] == 3 else 8 // said["bits"]
    shapes = {
        "W_q": (-(-lines // codes_in_a_word), width),
        "scale": (1, width) if said["axis"] == 0 else (lines, 1),
        "weight_shape": (2,),
    }
    shapes["zero"] = shapes["scale"]
    fits = all(tuple(parts[part].shape) == shape for part, shape in shapes.items())
    if not fits or tuple(parts["weight_shape"].tolist()) != tuple(linear.weight.shape):
        raise CorruptArtifact(f"the tensors of {name} do not have the shapes that its configuration asks for")
