"""What a model is before anybody quantizes it: its linear layers and their shapes, its embedding and its head.

It is read from the configuration, with the model built without storage, so it knows nothing of what a quantizer did and
can be held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """The modules that matter to a quantizer, by name.

    `linears` are all linear layers with rows and columns, the head too where it is one. `tied` says that embedding and
    head are one tensor.
    """

    linears: Mapping[str, tuple[int, int]]
    embedding: str
    head: str | None
    tied: bool


def read_architecture(folder: Path) -> Architecture:
    """Gives the architecture that a folder's configuration describes, as if it had never been quantized."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(plain, trust_remote_code=False)
    model.tie_weights()
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return Architecture(
        linears={
            name: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        },
        embedding=names[id(embedding)],
        head=None if head is None else names[id(head)],
        tied=head is not None and head.weight is embedding.weight,
    )
