"""How torchao says and stores what it quantized: the claim in `config.json`, and the tensors of every layout.

A weight `M.weight` lies as `M._weight_qdata` and its companions. The configuration is nested JSON of the library's own
classes; what concerns one module is found as the library finds it: an exact name, then the first pattern.

    torchao-int8      qdata I8 (R, C), scale (R, G), zero_point I8 (R, G). Fewer bits lie in 8 bits too
    torchao-int4      qdata I8 or U8 (R, C / 2), scale and zero_point (G, R)
    torchao-int4-cpu  qdata U8 (R, C / 2), scale and zero_point (R, G); this package's own form
    torchao-float8    qdata F8 (R, C), scale F32 (R, 1) or (1, 1)
    torchao-mxfp8     qdata F8 (R, C), scale F8_E8M0, one for 32 columns, in tiles
    torchao-mxfp4     qdata U8 (R, C / 2), scale the same
    torchao-nvfp4     qdata U8 (R, C / 2), scale F8_E4M3, one for 16 columns, in tiles, per_tensor_scale F32 ()

Tiles are 128 rows by 4 scales, padded where rows or columns end earlier, and stored as (32, 16). Codes of 4 bits do not
say alone how wide the weight is: that they are two in a byte shows when the width is held against the architecture.

Shapes: R rows, C columns, G groups a row. Source: torchao 0.18, `torchao.prototype.safetensors`, `mx_formats.utils`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError, Unsupported
from harness.stages.quantize.proof.headers import BITS, PLAIN_FLOATS, Parts, Stored

if TYPE_CHECKING:
    # Both import this module: they are imported where they are needed.
    from harness.stages.quantize.proof.declared import Claim
    from harness.stages.quantize.proof.layouts import PackedLinear

TYPE, DATA = "_type", "_data"
TILE_ROWS, TILE_SCALES, TILE_SHAPE = 128, 4, (32, 16)
BIAS = "bias"


@dataclass(frozen=True)
class Form:
    """A layout: types of codes and scales, bits of a code, the group of a tiled scale, which way scales lie."""

    codes: frozenset[str]
    scales: frozenset[str]
    bits: int
    tiled: int | None = None
    transposed: bool = False


INT4_CPU = "torchao-int4-cpu"
_FORMS: Mapping[str, Form] = {
    "torchao-int8": Form(frozenset({"I8"}), PLAIN_FLOATS, 8),
    "torchao-int4": Form(frozenset({"I8", "U8"}), PLAIN_FLOATS, 4, transposed=True),
    INT4_CPU: Form(frozenset({"U8"}), PLAIN_FLOATS, 4),
    "torchao-float8": Form(frozenset({"F8_E4M3", "F8_E5M2"}), PLAIN_FLOATS, 8),
    "torchao-mxfp8": Form(frozenset({"F8_E4M3", "F8_E5M2"}), frozenset({"F8_E8M0"}), 8, tiled=32),
    "torchao-mxfp4": Form(frozenset({"U8"}), frozenset({"F8_E8M0"}), 4, tiled=32),
    "torchao-nvfp4": Form(frozenset({"U8"}), frozenset({"F8_E4M3"}), 4, tiled=16),
}
LAYOUTS_OF_TORCHAO = tuple(_FORMS)


def claim_torchao(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what the configuration says about a module, None for one that is left alone."""
    said = config["quant_type"]["default"]
    if said[TYPE] in ("FqnToConfig", "ModuleFqnToConfig"):
        rules = said[DATA].get("fqn_to_config") or said[DATA]["module_fqn_to_config"]
        said = _rule(rules, module)
    elif any(module == name or module.endswith(f".{name}") for name in config.get("modules_to_not_convert") or ()):
        return None
    return None if said is None else _claim(said[TYPE], said[DATA])


def claim_torchao_int4_cpu(config: Mapping[str, Any], module: str) -> Claim | None:
    """Gives what this package's own form says about a module."""
    from harness.stages.quantize.proof.declared import Claim

    group = config["layers"].get(module)
    return None if group is None else Claim(INT4_CPU, 4, int(group))


def _rule(rules: Mapping[str, Any], module: str) -> Any:
    for name in (f"{module}.weight", module):
        if name in rules:
            return rules[name]
    for pattern, said in rules.items():
        wanted = pattern.removeprefix("re:")
        if wanted != pattern and (re.fullmatch(wanted, f"{module}.weight") or re.fullmatch(wanted, module)):
            return said
    return rules.get("_default")


def _claim(name: str, data: Mapping[str, Any]) -> Claim:
    from harness.stages.quantize.proof.declared import Claim

    match name:
        case "Int8WeightOnlyConfig":
            return Claim("torchao-int8", 8, _group(data.get("granularity")))
        case "Int8DynamicActivationInt8WeightConfig":
            return Claim("torchao-int8", 8, None, _inputs("8-bit int", data.get("act_mapping_type")))
        case "IntxWeightOnlyConfig":
            # Whatever `weight_dtype` says: this packing format has a byte for every code.
            return Claim("torchao-int8", _unpacked(data), _group(data["granularity"]))
        case "Int8DynamicActivationIntxWeightConfig":
            inputs = _inputs("8-bit int", data.get("act_mapping_type"))
            return Claim("torchao-int8", _unpacked(data), _group(data["weight_granularity"]), inputs)
        case "Int4WeightOnlyConfig" if _value(data["int4_packing_format"]) == "PLAIN":
            return Claim("torchao-int4", 4, int(data["group_size"]))
        case "Float8WeightOnlyConfig":
            return Claim("torchao-float8", 8, _group(data.get("granularity")))
        case "Float8DynamicActivationFloat8WeightConfig":
            return Claim("torchao-float8", 8, None, "8-bit float per token, dynamic")
        case "MXDynamicActivationMXWeightConfig":
            bits = 4 if _value(data["weight_dtype"]) == "float4_e2m1fn_x2" else 8
            group = int(data["block_size"])
            return Claim(f"torchao-mxfp{bits}", bits, group, f"{bits}-bit float per {group} inputs, dynamic")
        case "NVFP4WeightOnlyConfig":
            return Claim("torchao-nvfp4", 4, 16)
        case "NVFP4DynamicActivationNVFP4WeightConfig":
            return Claim("torchao-nvfp4", 4, 16, "4-bit float per 16 inputs, dynamic")
    raise Unsupported(
        f"coverage of torchao's {name} cannot be proved: its layout is not known here",
        remedy="choose another kind, or teach harness.stages.quantize.proof.layout_torchao this one",
    )


def _unpacked(data: Mapping[str, Any]) -> int:
    form = _value(data["intx_packing_format"])
    if form != "UNPACKED_TO_INT8":
        raise Unsupported(f"torchao's packing format {form} cannot be read", remedy="write unpacked_to_int8")
    return 8


def _inputs(numbers: str, mapping: Any) -> str:
    return f"{numbers} per token, dynamic" + (", asymmetric" if _value(mapping) == "ASYMMETRIC" else "")


def _value(encoded: Any) -> Any:
    return encoded[DATA] if isinstance(encoded, Mapping) else encoded


def _group(granularity: Any) -> int | None:
    """Gives the columns that share a scale; None for a row or a matrix, where nothing but `PerGroup` has a number."""
    if not isinstance(granularity, Mapping) or granularity[TYPE] != "PerGroup":
        return None
    return int(granularity[DATA]["group_size"])


def read_torchao(module: str, layout: str, parts: Parts) -> PackedLinear:
    """Gives the facts of one weight. Raises ModelError when its tensors are not of this layout."""
    from harness.stages.quantize.proof.layouts import PackedLinear

    form = _FORMS[layout]
    codes, scales = _part(module, parts, "qdata", form.codes), _part(module, parts, "scale", form.scales)
    if len(codes.shape) != 2:
        raise ModelError(f"{module}: codes of shape {list(codes.shape)} are no matrix")
    rows, columns = codes.shape[0], codes.shape[1] * BITS[codes.dtype] // form.bits
    zeros = parts.get("_weight_zero_point")
    more = [name for name in parts if name.startswith("_weight_") and name.endswith("_per_tensor_scale")]
    known = {BIAS, "_weight_qdata", "_weight_scale", "_weight_zero_point", *more}
    return PackedLinear(
        module=module,
        layout=layout,
        storage=codes.dtype,
        rows=rows,
        columns=columns,
        bits=form.bits,
        group=_tiled(module, scales, (rows, columns), form.tiled)
        if form.tiled
        else _grouped(module, scales, (rows, columns), transposed=form.transposed),
        scale_type=scales.dtype,
        scales=scales.shape,
        code_bytes=codes.bytes,
        scale_bytes=scales.bytes + sum(parts[name].bytes for name in more),
        zero_bytes=zeros.bytes if zeros else 0,
        other_bytes=sum(stored.bytes for name, stored in parts.items() if name not in known),
    )


def _tiled(module: str, scales: Stored, shape: tuple[int, int], group: int) -> int:
    tiles = math.ceil(shape[0] / TILE_ROWS), math.ceil(shape[1] / (group * TILE_SCALES))
    wanted = tuple(tile * side for tile, side in zip(tiles, TILE_SHAPE, strict=True))
    if scales.shape != wanted:
        raise ModelError(f"{module}: scales lie as {list(scales.shape)}, and {group} columns a scale need {wanted}")
    return group


def _grouped(module: str, scales: Stored, shape: tuple[int, int], *, transposed: bool) -> int | None:
    if scales.elements == 1:
        return None
    across, groups = scales.shape[::-1] if transposed else scales.shape
    if across != shape[0] or shape[1] % groups:
        raise ModelError(
            f"{module}: scales of shape {list(scales.shape)} do not divide {shape[0]} x {shape[1]} weights"
        )
    return None if groups == 1 else shape[1] // groups


def _part(module: str, parts: Parts, name: str, types: frozenset[str]) -> Stored:
    stored = parts.get(f"_weight_{name}")
    if stored is None:
        raise ModelError(f"{module}: _weight_{name} is missing; there are {', '.join(sorted(parts)) or 'no tensors'}")
    if stored.dtype not in types:
        raise ModelError(f"{module}: _weight_{name} is stored as {stored.dtype}; allowed: {', '.join(sorted(types))}")
    return stored
