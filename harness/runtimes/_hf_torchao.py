"""4-bit weights for PyTorch's own kernel on CPUs, which torchao computes with and cannot save.

`aten::_weight_int4pack_mm_for_cpu` reads codes in an order that depends on the instruction set, so its packed form
means nothing on another machine. The folder therefore holds plain codes, and they are packed as they are read:

    _weight_qdata       U8 (R, C / 2)  two codes from 0 to 15 in a byte, the even column in its lower half
    _weight_scale       (R, G)         w = scale * (code - 8) + zero
    _weight_zero_point  (R, G)         a float, the weight that the code 8 stands for

Shapes: R rows, C columns, G groups a row. Source: torchao 0.18, `torchao.prototype.quantization.int4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import CorruptArtifact, Unsupported
from harness.runtimes._hf_native_model import Folder, build_empty, fill, read_tensors, take

METHOD: Final = "torchao-int4-cpu"
"""How `quant_method` names such folders."""
CODES, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"


def wrap(parts: Mapping[str, Tensor]) -> Tensor:
    """Gives the weight (R, C) that torchao multiplies with. Raises RuntimeError for what the kernel does not take."""
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    bytes_RB, scale_RG, zero_RG = parts[CODES], parts[SCALE], parts[ZERO]
    codes_RC = torch.stack([bytes_RB & 15, bytes_RB >> 4], dim=-1).reshape(len(bytes_RB), -1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_RC.to(torch.int32), 1)
    both_GR2 = torch.stack([scale_RG, zero_RG], dim=-1).transpose(0, 1).contiguous()
    made: Any = Int4OpaqueTensor  # torchao has no types
    tensor: Tensor = made(packed, both_GR2, [1, codes_RC.shape[1] // scale_RG.shape[1]], codes_RC.shape)
    return tensor


def read_int4_cpu(folder: Folder) -> PreTrainedModel:
    """Gives the model of such a folder.

    Raises CorruptArtifact for tensors that do not fit, Unsupported for a layer that the kernel does not take.
    """
    model, tensors = build_empty(folder), read_tensors(folder.path)
    layers = folder.quantization["layers"]
    for name in layers:
        layer: Any = model.get_submodule(name)
        parts, dtype = take(tensors, name), layer.weight.dtype
        _require_parts(name, parts, layer.weight.shape, group=layers[name])
        parts = {part: tensor if part == CODES else tensor.to(dtype) for part, tensor in parts.items()}
        try:
            layer.weight = torch.nn.Parameter(wrap(parts), requires_grad=False)
        except RuntimeError as error:
            raise Unsupported(f"{name} cannot be packed here: {error}", remedy="open it on a CPU") from error
        if "bias" in parts:
            layer.bias = torch.nn.Parameter(parts["bias"], requires_grad=False)
    fill(model, tensors, packed=set(layers))
    return model


def _require_parts(name: str, parts: Mapping[str, Tensor], shape: torch.Size, *, group: int) -> None:
    groups = (shape[0], shape[1] // group)
    wanted = {CODES: (shape[0], shape[1] // 2), SCALE: groups, ZERO: groups}
    found = {part: tuple(tensor.shape) for part, tensor in parts.items() if part != "bias"}
    if found != wanted:
        raise CorruptArtifact(f"{name}: its tensors are {found}, and the configuration needs {wanted}")
