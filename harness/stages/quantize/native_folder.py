"""Writes folders of quantizers that transformers does not know: one safetensors file, and a configuration that says so.

The libraries' own ways of saving write pickles or leave something out. Here the quantizer's tensors are written beside
those that stayed as they are, in one safetensors file, and `config.json` is the source's with a `quantization_config`
in which every packed layer is listed with what reads it back. A layer that is not listed is plain.
`harness.runtimes._hf_native` opens such folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.stages.quantize.recipe import Assignment, Scheme

SHAPE = "weight_shape"
"""The tensor in which a layout writes down rows and columns where its codes do not show them."""


def save_native(
    model: PreTrainedModel,
    packed: Mapping[str, Mapping[str, Tensor]],
    quantization: Mapping[str, Any],
    *,
    source: Path,
    out: Path,
) -> None:
    """Writes the model into `out`: the tensors of `packed` modules as given, all others as the model has them."""
    from safetensors.torch import save_file

    tensors = dict(_plain(model, set(packed)))
    for module, parts in packed.items():
        tensors |= {f"{module}.{part}": tensor.detach().cpu().contiguous() for part, tensor in parts.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = dict(quantization)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def schemes_by_layer(assignment: Assignment) -> Iterator[tuple[str, Scheme, float]]:
    """Yields every layer that is to be packed, its scheme, and the fraction of layers before it."""
    count = len(assignment.layers)
    done = 0
    for scheme, names in assignment.schemes:
        for name in names:
            yield name, scheme, done / count
            done += 1


def _plain(model: PreTrainedModel, packed: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and saved buffers of all other modules, tied ones once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if prefix in packed:
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if name in module._non_persistent_buffers_set or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            yield f"{prefix}.{name}", tensor.detach().cpu().contiguous()
