"""What vLLM really loaded: bytes, types and kernels of the tensors in its workers' memory, digests of the files.

vLLM rearranges weights after loading. Most stay parameters in another shape. On CPUs plain matrices move into oneDNN,
which keeps them in a layout of its own behind a handle, and an empty parameter remains: such a matrix is counted at the
size it had, in the type that is left on the empty parameter.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harness.record import Identity
from harness.runtimes._hf_identity import (
    architecture_size,
    file_digest,
    short_name,
    tensor_types,
    tokenizer_hash,
    unique,
)

HIDDEN = "matrices that oneDNN keeps in a layout of its own are counted at the size they had before"
PACKED = "packed weights are counted by the architecture they stand for"
KERNEL_PARTS = ("quant_method", "scheme", "kernel", "impl")
"""Attributes of a module, or of what such an attribute holds, that compute with its weights."""


@dataclass(frozen=True)
class Inventory:
    """Weights of a loaded model. `packed`: integers stand for some of them; `hidden`: some were counted unseen.

    `caches` are those in which keys and values take a byte each.
    """

    memory_bytes: int
    elements: int
    types: dict[str, int]
    kernels: tuple[str, ...]
    caches: tuple[str, ...]
    packed: bool
    hidden: bool


def identify(engine: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Identity:
    """Gives the identity of what an engine has loaded; reads every weight file once to hash it."""
    import vllm

    files = sorted(directory.glob("*.safetensors"))
    (found,) = engine.apply_model(inventory)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    config = engine.model_config
    mode = "eager" if config.enforce_eager else "compiled"
    return Identity(
        weights_digest=file_digest(files),
        weights_disk_bytes=sum(file.stat().st_size for file in files),
        weights_memory_bytes=found.memory_bytes,
        parameters=architecture_size(config.hf_config) if found.packed else found.elements,
        tensor_types=found.types,
        kernel=" ".join([f"torch {torch.__version__}", short_name(config.dtype), mode, *found.kernels, *found.caches]),
        tokenizer_hash=tokenizer_hash(tokenizer, directory),
        chat_template_hash=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        runtime_version=f"vllm {vllm.__version__}",
        caveats=(*((PACKED,) if found.packed else ()), *((HIDDEN,) if found.hidden else ())),
    )


def inventory(model: torch.nn.Module) -> Inventory:
    """Counts a model's parameters, tied ones once; caches and tables of positions are buffers and no weights."""
    seen = [tensor for tensor in unique(model.parameters()) if tensor.numel()]
    unseen = list(hidden_matrices(model))
    types = Counter(tensor_types(seen))
    for elements, dtype in unseen:
        types[short_name(dtype)] += elements
    return Inventory(
        memory_bytes=sum(tensor.untyped_storage().nbytes() for tensor in seen)
        + sum(elements * dtype.itemsize for elements, dtype in unseen),
        elements=sum(types.values()),
        types=dict(sorted(types.items())),
        kernels=tuple(sorted(set(kernels(model)))),
        caches=tuple(f"kv {kind}" for kind in sorted(byte_caches(model))),
        packed=any(not tensor.is_floating_point() and tensor.numel() > 1 for tensor in seen),
        hidden=bool(unseen),
    )


def hidden_matrices(model: torch.nn.Module) -> Iterator[tuple[int, torch.dtype]]:
    """Yields number of elements and type of each matrix whose parameter was left empty."""
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.numel():
            continue
        known = vars(module)
        rows = known.get("output_size_per_partition", known.get("output_size"))
        columns = known.get("input_size_per_partition", known.get("input_size"))
        assert rows is not None, f"{type(module).__name__} has an empty weight and does not say of what shape"
        yield rows * columns, weight.dtype


def kernels(model: torch.nn.Module) -> Iterator[str]:
    """Yields the names of what computes with the weights: quantization methods, schemes, kernels, attention."""
    holders: list[Any] = list(model.modules())
    seen = {id(holder) for holder in holders}
    while holders:
        attributes = _attributes(holders.pop())
        for found in (attributes[part] for part in KERNEL_PARTS if part in attributes):
            if id(found) not in seen and type(found).__module__ != "builtins":
                seen.add(id(found))
                holders.append(found)
                yield type(found).__name__


def byte_caches(model: torch.nn.Module) -> set[str]:
    """Gives what vLLM calls the types of keys and values that it keeps in a byte each."""
    found = set()
    for module in model.modules():
        attributes = _attributes(module)
        cache = attributes.get("kv_cache")
        if isinstance(cache, torch.Tensor) and cache.dtype.itemsize == 1:
            found.add(str(attributes["kv_cache_dtype"]))
    return found


def _attributes(holder: Any) -> dict[str, Any]:
    try:
        return vars(holder)
    except TypeError:  # an object with slots; it holds no parts of its own
        return {}
