"""What was really loaded: digests of the files, and bytes, types and kernels of the tensors in memory.

Tied weights are one storage and count once. A packed weight is stored as integers that hold several logical weights
each; what it stands for is then counted on the same architecture built without storage, and a caveat says so.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from harness.record import Identity
from harness.runtimes._hf_bitsandbytes import beside_parameters
from harness.runtimes._hf_computing import computes_in_floats
from harness.runtimes._hf_load import is_quantized
from harness.stages.quantize.proof.headers import PLAIN_FLOATS, read_headers

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that a weight has in memory when it is not packed; floats of 8 bits are."""


def identify(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Identity:
    """Gives the identity of a loaded model; reads every weight file once to hash it."""
    files = sorted(directory.glob("*.safetensors"))
    beside = [*beside_parameters(model), *_attributes(model)]
    stored = list(unique([*model.parameters(), *model.buffers(), *beside]))
    weights = list(unique([*model.parameters(), *_saved_buffers(model), *beside]))
    packed = [tensor for tensor in weights if tensor.dtype not in _PLAIN and tensor.numel() > 1]
    quantized = is_quantized(model)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    return Identity(
        weights_digest=file_digest(files),
        weights_disk_bytes=sum(file.stat().st_size for file in files),
        weights_memory_bytes=sum(tensor.untyped_storage().nbytes() for tensor in stored),
        parameters=architecture_size(model.config)
        if packed or quantized
        else sum(t.numel() for t in unique(model.parameters())),
        tensor_types=tensor_types(weights),
        kernel=_kernel(model, packed),
        tokenizer_hash=tokenizer_hash(tokenizer, directory),
        chat_template_hash=hashlib.sha256(template.encode()).hexdigest() if template is not None else None,
        runtime_version=f"transformers {transformers.__version__}",
        unpacked=quantized and (_is_unpacked(stored, directory) or computes_in_floats(model)),
        caveats=("packed weights are counted by the architecture they stand for",) if packed or quantized else (),
    )


def _saved_buffers(model: Any) -> Iterator[torch.Tensor]:
    """Yields the buffers that belong into a file: `state_dict` would name them too, and change bitsandbytes' layers."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer


def _attributes(model: Any) -> Iterator[torch.Tensor]:
    """Yields tensors that lie on a module and are neither parameters nor buffers, as some kernels keep their scales."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))


def _is_unpacked(stored: Iterable[torch.Tensor], directory: Path) -> bool:
    """True when most of the codes that lie in the files are nowhere in memory: they were turned into plain floats."""
    in_memory = sum(tensor.nbytes for tensor in stored if tensor.dtype not in _PLAIN)
    parts = [part for module in read_headers(directory).values() for part in module.values()]
    return 2 * in_memory < sum(part.bytes for part in parts if part.dtype not in PLAIN_FLOATS)


def tensor_types(weights: Iterable[torch.Tensor]) -> dict[str, int]:
    """Counts elements by storage type, as packed."""
    counts: Counter[str] = Counter()
    for tensor in weights:
        counts[_type_name(tensor)] += tensor.numel()
    return dict(sorted(counts.items()))


def unique(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Gives plain tensors, each storage once; a wrapper (torchao's, for one) counts as the tensors inside it."""
    seen: set[tuple[torch.device, int]] = set()
    for tensor in (part for whole in tensors for part in plain_parts(whole)):
        key = (tensor.device, tensor.untyped_storage().data_ptr())
        if key not in seen:
            seen.add(key)
            yield tensor


def plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gives the tensors that really hold the bytes."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_parts(getattr(tensor, name))


def architecture_size(config: Any) -> int:
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain, trust_remote_code=False)
    model.tie_weights()
    # Tensors without storage share no pointer: parameters() itself leaves out those that are tied.
    return sum(parameter.numel() for parameter in model.parameters())


def _kernel(model: Any, packed: list[torch.Tensor]) -> str:
    pointers = {tensor.data_ptr() for tensor in packed}
    owners = {
        type(module).__name__ + (f"[{type(own).__name__}]" if is_traceable_wrapper_subclass(own) else "")
        for module in model.modules()
        for own in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(part.data_ptr() in pointers for part in plain_parts(own))
    }
    attention = model.config._attn_implementation
    return " ".join([f"torch {torch.__version__}", attention, short_name(model.dtype), *sorted(owners)])


def _type_name(tensor: torch.Tensor) -> str:
    return short_name(tensor.dtype)


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def file_digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, directory: Path) -> str:
    file = directory / "tokenizer.json"
    plain = file.read_bytes() if file.is_file() else json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.sha256(plain).hexdigest()
