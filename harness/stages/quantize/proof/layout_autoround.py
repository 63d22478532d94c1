"""The layout of AutoRound: what its configuration claims and how its tensors lie.

One set of numbers holds for the decoder layers in `block_name_to_quantize`; `extra_config` has those that differ, and
layers outside, by name or by pattern; 16 bits mean left as it is. `packing_format` says how the words are filled:

    auto_round:auto_gptq  as gptq (zero points are stored less 1), without an index of groups
    auto_round            the same, and zero points as they are
    auto_round:auto_awq   as awq

Source: auto-round 0.15.1, `export_to_autoround/export.py` and `inference/convert_model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from harness.errors import Unsupported
from harness.stages.quantize.proof.headers import Parts

if TYPE_CHECKING:
    from harness.stages.quantize.proof.declared import Claim
    from harness.stages.quantize.proof.layouts import PackedLinear

AS_GPTQ: Final = ("auto_round:auto_gptq", "auto_round")
AS_AWQ: Final = "auto_round:auto_awq"
PLAIN_BITS: Final = 16
WORD: Final = 32


def claim_autoround(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what an AutoRound configuration says about a linear module; None when it is left as it is."""
    from harness.stages.quantize.proof.declared import Claim

    packing = config["packing_format"]
    if packing not in (*AS_GPTQ, AS_AWQ) or config.get("act_bits", PLAIN_BITS) < PLAIN_BITS:
        raise Unsupported(
            f"coverage of AutoRound's packing format {packing!r} cannot be proved",
            remedy=f"write the checkpoint in {', '.join((*AS_GPTQ, AS_AWQ))}, with weights alone quantized",
        )
    extra = _extra(config.get("extra_config") or {}, module)
    if extra is None and not module.startswith(tuple(_blocks(config))):
        return None
    said = {**config, **(extra or {})}
    if int(said["bits"]) >= PLAIN_BITS:
        return None
    group = int(said["group_size"])
    return Claim(packing, int(said["bits"]), None if group < 0 else group)


def _blocks(config: Mapping[str, Any]) -> list[str]:
    written = config.get("block_name_to_quantize") or ""
    names = written.split(",") if isinstance(written, str) else written
    return [name.strip() for name in names]


def _extra(extra: Mapping[str, Any], module: str) -> Mapping[str, Any] | None:
    """Gives the exception for a module: by its name, else by the first pattern that is found in it."""
    if module in extra:
        return dict(extra[module])
    return next((dict(change) for pattern, change in extra.items() if change and re.search(pattern, module)), None)


def read_as_gptq(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of a weight without an index of groups: its bits show in the zero points, one for each scale."""
    from harness.stages.quantize.proof.layouts import _bits, _facts, _part

    codes, zeros, scales = (_part(module, parts, name) for name in ("qweight", "qzeros", "scales"))
    rows = scales.shape[1]
    bits = _bits(module, zeros.shape[1], rows)
    shape = (rows, codes.shape[0] * WORD // bits)
    return _facts(module, "gptq", parts, shape=shape, bits=bits).model_copy(update={"layout": layout})


def read_as_awq(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of a weight that lies as awq's do."""
    from harness.stages.quantize.proof.layouts import LAYOUTS

    return LAYOUTS["awq"](module, "awq", parts).model_copy(update={"layout": layout})


AUTOROUND_READERS: Final = {**dict.fromkeys(AS_GPTQ, read_as_gptq), AS_AWQ: read_as_awq}
