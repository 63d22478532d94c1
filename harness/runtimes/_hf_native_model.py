"""What all readers of packed folders have in common: an empty model, the tensors of the files, and a perfect fit.

A reader builds the model from its configuration without values, puts the quantizer's modules where packed tensors lie,
and hands what is left to `fill`, which accepts nothing but a perfect fit: every tensor on disk used, every weight of
the model found, every shape the same. Only safetensors are read and no code of the folder runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from harness.errors import CorruptArtifact

CONFIG: Final = "quantization_config"


@dataclass(frozen=True)
class Folder:
    """A packed folder, what its configuration says of the quantizer, and how the model is to be opened."""

    path: Path
    quantization: Mapping[str, Any]
    dtype: str
    attention: str


def build_empty(folder: Folder) -> PreTrainedModel:
    """Gives the model as it was before it was quantized, on the host, its weights reserved and not set.

    `config.quantization_config` is what the folder says; `dtype` is the type asked for, with `auto` the stored one.
    """
    config: Any = AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    plain = type(config).from_dict({key: value for key, value in config.to_dict().items() if key != CONFIG})
    dtype = plain.dtype if folder.dtype == "auto" else getattr(torch, folder.dtype)
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(
            plain, dtype=dtype or torch.float32, attn_implementation=folder.attention, trust_remote_code=False
        )
    model.config.quantization_config = dict(folder.quantization)
    if (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder.path, local_files_only=True)
    return cast("PreTrainedModel", model)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Gives all tensors of the folder's safetensors files by name. Raises CorruptArtifact when one comes twice."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        loaded = load_file(file)
        if twice := sorted(set(tensors) & set(loaded)):
            raise CorruptArtifact(f"{path.name}: {twice[0]} is stored twice")
        tensors |= loaded
    return tensors


def take(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """Takes a module's tensors out, by the rest of their names.

    They are copied into memory of torch's own: in a mapped file they lie on odd addresses, on which kernels for packed
    weights may end the process (`_weight_int8pack_mm` of torch 2.13 does).
    """
    names = [name for name in tensors if name.startswith(f"{module}.")]
    return {name.removeprefix(f"{module}."): tensors.pop(name).clone() for name in names}


def fill(model: PreTrainedModel, rest: Mapping[str, Tensor], *, packed: Collection[str]) -> None:
    """Gives the model the tensors that the quantizer has left, in the model's type, and ties what is tied.

    `packed` are the modules that the reader has put in and filled itself. Raises CorruptArtifact when a tensor fits
    nothing, when one that the model needs is missing, or when a shape differs.
    """
    model.tie_weights()
    places = dict(_places(model, set(packed)))
    found = {places[name].data_ptr() for name in rest if name in places}
    problems = {
        "unexpected": sorted(set(rest) - set(places)),
        "missing": sorted(name for name in set(places) - set(rest) if places[name].data_ptr() not in found),
        "another shape": sorted(name for name in set(rest) & set(places) if rest[name].shape != places[name].shape),
    }
    if wrong := {kind: names for kind, names in problems.items() if names}:
        said = "; ".join(f"{kind}: {', '.join(names[:3])} ({len(names)} in all)" for kind, names in wrong.items())
        raise CorruptArtifact(f"the packed checkpoint does not match its own configuration: {said}")
    with torch.no_grad():
        for name, tensor in rest.items():
            places[name].copy_(tensor)


def _places(model: PreTrainedModel, packed: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields what a file has to fill, by name: parameters, and buffers that are saved, tied ones under all names."""
    for prefix, module in model.named_modules():
        if prefix in packed:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}", parameter
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer
