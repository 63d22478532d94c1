"""Whether a model multiplies the packed weights it holds, or writes each out in floats first and multiplies that.

Some layers hold packed weights and a kernel that reads them. Others write out the whole weight in floats at every pass:
their weights stay packed in memory, and their time is that of the floats and of writing them out, so it is not to be
quoted. Which does which was read in the libraries' sources: torchao 0.18 (the `linear` of every tensor class),
GPTQModel 7.6, auto-round 0.15.1, bitsandbytes 0.50.2, hqq 0.2.8.post1 and optimum-quanto 0.2.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Rule = Callable[[Any], bool]
"""Says of a layer, or of its weight, whether it writes itself out in floats."""


def _weights_only(weight: Any) -> bool:
    """True where inputs are not quantized, so there is nothing but floats to multiply with."""
    return weight.act_quant_kwargs is None


def _emulates(weight: Any) -> bool:
    return bool(weight.kernel_preference.name == "EMULATED")


def _lacks_a_kernel_for_the_host(layer: Any) -> bool:
    """True for a 4-bit layer on a processor for which bitsandbytes has no packed form."""
    state = layer.weight.quant_state
    return layer.weight.device.type == "cpu" and not getattr(state, "packing_format_for_cpu", False)


WEIGHTS: Mapping[str, Rule] = {
    "Int8Tensor": _weights_only,
    "Float8Tensor": _weights_only,
    "NVFP4Tensor": _weights_only,
    "IntxUnpackedToInt8Tensor": lambda _: True,
    "MXTensor": _emulates,
}
"""By the class of a weight that wraps other tensors. What is not here multiplies what it holds."""

LAYERS: Mapping[str, Rule] = {
    "HqqLinear": lambda _: True,
    "QuantoLinear": lambda layer: layer.writes_out_floats,
    "TorchLinear": lambda _: True,
    "AwqTorchLinear": lambda _: True,
    "QuantLinear": lambda layer: type(layer).__module__.startswith("auto_round_extension.torch"),
    "Linear4bit": _lacks_a_kernel_for_the_host,
}
"""By the class of a layer of its own. What is not here multiplies what it holds."""


def computes_in_floats(model: torch.nn.Module) -> bool:
    """True when most packed layers write their weight out in floats at every pass. The model has computed once."""
    layers = {True: 0, False: 0}
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and is_traceable_wrapper_subclass(weight):
            rule = WEIGHTS.get(type(weight).__name__)
            layers[rule is not None and rule(weight)] += 1
        elif (rule := LAYERS.get(type(layer).__name__)) is not None:
            layers[rule(layer)] += 1
    return layers[True] > layers[False]
