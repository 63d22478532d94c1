"""Which linear layers a stage works on: all that the model has, but for those it is told to leave as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import SpecError, Unsupported, closest


def linear_layers(folder: Path, *, skip: Sequence[str] = ()) -> list[str]:
    """Gives the names of the `Linear` modules in the order of the model, from its class without its weights.

    An entry of `skip` is a module's full name or its last parts. Raises SpecError when one names no layer, and
    Unsupported when no layer is left.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for entry in skip:
        if not any(_matches(layer, entry) for layer in layers):
            last = {layer.rsplit(".", 1)[-1] for layer in layers}
            hint = closest(entry, last)
            raise SpecError("skip names no linear layer", key="skip", found=entry, allowed=last, remedy=hint)
    kept = [layer for layer in layers if not any(_matches(layer, entry) for entry in skip)]
    if not kept:
        raise Unsupported(
            "the model has no `Linear` layers left to work on", remedy="shorten `skip`, or use a stage for other layers"
        )
    return kept


def _matches(layer: str, entry: str) -> bool:
    return layer == entry or layer.endswith(f".{entry}")
