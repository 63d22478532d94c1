"""What bitsandbytes keeps beside a model's parameters, and how to look at it without touching it.

Scales and tables of its layers are attributes of a parameter, or of the layer, and neither parameters nor buffers. The
usual way to see all tensors of a model, `state_dict()`, must not be used: on processors with AVX512-BF16 a 4-bit layer
that has computed turns its weights back into the form in which they are saved, rounds their scales again, and then
computes something else (without double quantization, garbage).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch

LIBRARY = "bitsandbytes"


def beside_parameters(model: Any) -> Iterator[torch.Tensor]:
    """Yields the scales and tables of bitsandbytes' layers; nothing for a model that has none."""
    library: Any = sys.modules.get(LIBRARY)  # a model with its layers has imported it
    if library is None:
        return
    for module in model.modules():
        if isinstance(module, library.nn.Linear4bit):
            yield from _tensors(module.weight.quant_state)
        elif isinstance(module, library.nn.Linear8bitLt):
            # Before the first pass the scales hang on the weight, then on the layer.
            yield from (one.SCB for one in (module.weight, module.state) if one.SCB is not None)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) is type(state):  # the scales' own scales
            yield from _tensors(value)


def hush() -> None:
    """Keeps bitsandbytes from saying once for every layer and pass that it rounds bfloat16 inputs to float16."""
    logging.getLogger(f"{LIBRARY}.autograd._functions").setLevel(logging.ERROR)
