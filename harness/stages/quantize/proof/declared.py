"""What a packed folder says about itself: the `quantization_config` in its `config.json`.

This is a claim, to be held against the tensors. Three ways of writing it down are understood: compressed-tensors
(groups of modules, each with a format and its own bits), gptq and awq (one set of numbers for all, with exceptions).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ModelError, Unsupported
from harness.stages.quantize.proof.layout_autoround import claim_autoround
from harness.stages.quantize.proof.layout_bitsandbytes import claim_bitsandbytes
from harness.stages.quantize.proof.layout_hqq import claim_hqq
from harness.stages.quantize.proof.layout_quanto import claim_quanto
from harness.stages.quantize.proof.layout_torchao import claim_torchao, claim_torchao_int4_cpu

LINEAR = "Linear"
"""The class name by which compressed-tensors addresses every linear layer."""
WHOLE_ROW = -1
"""How gptq and awq write a group that is a whole row."""
HEAD = "lm_head"
"""How gptq and awq call the head, in the configuration as in the model."""


@dataclass(frozen=True)
class Claim:
    """What the configuration says about one module: layout, bits, and columns in a group (None: nothing said)."""

    layout: str
    bits: int
    group: int | None
    activations: str | None = None


@dataclass(frozen=True)
class Declaration:
    """The whole configuration: the method, and the claim about any module."""

    method: str
    config: Mapping[str, Any]

    def claim(self, module: str) -> Claim | None:
        """Gives what is said about a linear module; None when it is said to be left as it is."""
        return _READERS[self.method](self.config, module)


def read_declaration(folder: Path) -> Declaration:
    """Gives the folder's declaration. Raises ModelError without one and Unsupported for one that is not understood."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if not config:
        raise ModelError(f"{folder.name}: config.json has no quantization_config, so nothing was quantized")
    method = config.get("quant_method")
    version = config.get("version", "gemm") if method == "awq" else config.get("checkpoint_format", "gptq")
    if method not in _READERS or (method != "compressed-tensors" and version not in ("gptq", "gptq_v2", "gemm")):
        raise Unsupported(
            f"coverage of the layout {method!r} ({version}) cannot be proved: it is none of {', '.join(_READERS)}",
            remedy="write the checkpoint in one of those layouts, or teach it to harness.stages.quantize.proof.layouts",
        )
    return Declaration(method, config)


def _compressed_tensors(config: Mapping[str, Any], module: str) -> Claim | None:
    if any(_matches(target, module) for target in config.get("ignore") or ()):
        return None
    groups = list((config.get("config_groups") or {}).values())
    targets = sorted({target for group in groups for target in group["targets"]}, key=_precedence)
    for target in targets:
        if _matches(target, module):
            group = next(group for group in reversed(groups) if target in group["targets"])
            return _group_claim(group, config)
    return None


def _group_claim(group: Mapping[str, Any], config: Mapping[str, Any]) -> Claim | None:
    weights = group.get("weights")
    if weights is None:
        return None
    layout = group.get("format") or config.get("format")
    return Claim(
        str(layout), int(weights["num_bits"]), weights.get("group_size"), _said(group.get("input_activations"))
    )


def _said(activations: Mapping[str, Any] | None) -> str | None:
    """Gives what is declared about activations in words: `8-bit int per token, dynamic`."""
    if activations is None:
        return None
    dynamic = activations.get("dynamic")
    how = str(dynamic) if isinstance(dynamic, str) else "dynamic" if dynamic else "static"
    return f"{activations['num_bits']}-bit {activations['type']} per {activations['strategy']}, {how}"


def _precedence(target: str) -> tuple[bool, bool, str]:
    """Orders targets as compressed-tensors does: exact names, then patterns, then classes."""
    return target == LINEAR, target.startswith("re:"), target


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in (module, LINEAR)


def _gptq(config: Mapping[str, Any], module: str) -> Claim | None:
    packed = [end for ends in config.get("modules_in_block_to_quantize") or () for end in ends]
    if _is_plain_head(config, module) or (packed and not module.endswith(tuple(packed))):
        return None
    said = dict(config)
    for pattern, change in _rules(config.get("dynamic") or {}, module):
        if pattern.startswith("-"):
            return None
        said |= change
    return Claim("gptq", int(said["bits"]), _group(said["group_size"]))


def _rules(dynamic: Mapping[str, Any], module: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for pattern, change in dynamic.items():
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), module):
            yield pattern, change or {}
            return


def _awq(config: Mapping[str, Any], module: str) -> Claim | None:
    if _is_plain_head(config, module) or any(part in module for part in config.get("modules_to_not_convert") or ()):
        return None
    return Claim("awq", int(config["bits"]), _group(config["group_size"]))


def _is_plain_head(config: Mapping[str, Any], module: str) -> bool:
    """True for the head, which gptq and awq leave as it is unless the key of its name says otherwise."""
    return module.rpartition(".")[2] == HEAD and not config.get(HEAD)


def _group(written: int) -> int | None:
    return None if written == WHOLE_ROW else written


_READERS = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": claim_bitsandbytes,
    "hqq": claim_hqq,
    "quanto": claim_quanto,
    "torchao": claim_torchao,
    "torchao-int4-cpu": claim_torchao_int4_cpu,
    "auto-round": claim_autoround,
}
