"""Opens a Hugging Face directory, or says why not.

transformers loads wrong weights without an error: a missing tensor is drawn at random, a superfluous one is dropped,
and a packed checkpoint whose format it does not know is read as if it were plain. So every loaded model passes three
questions: was every weight found, was every tensor on disk used, and did a quantizer take part if the configuration
says that the weights are quantized? Only safetensors are read, no code from the directory runs, and nothing is
fetched. Folders of quantizers that transformers does not know go to `_hf_native`, which asks the same.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import CorruptArtifact, Unsupported
from harness.runtimes._hf_bitsandbytes import hush
from harness.runtimes._hf_native import read_native
from harness.spec import Hardware

_REMEDY = "open it with the runtime that the checkpoint was written for, or build it again"


def load_model(path: Path, *, dtype: str, attention: str, hardware: Hardware) -> PreTrainedModel:
    """Gives the model in inference mode on its device. Raises CorruptArtifact or Unsupported."""
    require_device(hardware)
    model: Any = read_native(path, dtype=dtype, attention=attention)
    if model is None:
        model = _read(path, dtype=dtype, attention=attention, hardware=hardware)
    model.to(hardware.device).eval().requires_grad_(False)
    if is_quantized(model):
        hush()
        _settle(model)
    return cast("PreTrainedModel", model)


def _read(path: Path, *, dtype: str, attention: str, hardware: Hardware) -> PreTrainedModel:
    """Gives the model as transformers reads it, held against its files."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": hardware.device} if hardware.device == "cuda" else None,
            # A shape that differs must reach our own check as a fact, not as an exception with a remedy that hides it.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path.name} is not a complete model directory: {error}") from error
    except ImportError as error:
        raise Unsupported(f"a package this checkpoint needs is missing: {error}", remedy="install it") from error
    except ValueError as error:
        raise Unsupported(f"transformers cannot open {path.name}: {error}", remedy=_REMEDY) from error
    model, info = loaded
    require_faithful(model, info)
    return cast("PreTrainedModel", model)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Gives the directory's own tokenizer. Raises CorruptArtifact when it has none."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{path.name} has no tokenizer that can be read: {error}") from error


def require_device(hardware: Hardware) -> None:
    """Raises Unsupported when this machine, or this build of torch, lacks the device."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[hardware.device]:
        raise Unsupported(
            f"torch {torch.__version__} sees no {hardware.device} device",
            remedy="choose another device, or install a torch that is built for it",
        )


def is_quantized(model: Any) -> bool:
    """True when the model's configuration says that its weights were quantized."""
    return model.config.to_dict().get("quantization_config") is not None


def _settle(model: PreTrainedModel) -> None:
    """Reads one token, after which the weights are what they will be computed with.

    A quantizer may leave weights packed until the first forward pass and unpack all of them then: before that neither
    their bytes nor the time of a pass are those of the model that is measured.
    """
    with torch.no_grad():
        model(torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)


def require_faithful(model: Any, info: dict[str, Collection[Any]]) -> None:
    """Raises when the weights in memory are not exactly those on disk, read as what they are."""
    problems = {kind: sorted(str(key) for key in keys) for kind, keys in info.items() if keys}
    quantized = is_quantized(model)
    if quantized and vars(model).get("hf_quantizer") is None:
        raise Unsupported("the weights are quantized and transformers read them as if they were not", remedy=_REMEDY)
    if not problems:
        return
    found = "; ".join(f"{kind}: {', '.join(keys[:3])} ({len(keys)} in all)" for kind, keys in problems.items())
    if quantized:
        raise Unsupported(f"transformers does not understand this quantized checkpoint: {found}", remedy=_REMEDY)
    raise CorruptArtifact(f"the checkpoint does not match its own configuration: {found}")
