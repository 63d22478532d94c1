"""Schemes as compressed-tensors writes them: integers in groups, integers for both sides, 8- and 4-bit floats.

They are plain data, made without importing anything, so that a plan can build and compare them. Source: the presets of
compressed-tensors 0.19 (`quant_scheme.py`), which these equal at the presets' own numbers.
"""

from __future__ import annotations

from typing import Any

from harness.stages.quantize.recipe import Scheme

BITS = (2, 3, 4, 8)
BLOCK = 128
"""Rows and columns of a block of FP8 weights that share a scale."""


def integers(bits: int, *, group: int | None, symmetric: bool) -> Scheme:
    """Gives integer weights with a scale for `group` columns, or for a whole row."""
    return {"weights": _numbers("int", bits, "group" if group else "channel", group_size=group, symmetric=symmetric)}


def int8_both() -> Scheme:
    """Gives 8-bit integers for weights (a scale a row) and for activations (a scale a token, found as it comes)."""
    return {
        "weights": _numbers("int", 8, "channel"),
        "input_activations": _numbers("int", 8, "token", dynamic=True),
    }


def fp8(kind: str) -> Scheme:
    """Gives 8-bit floats (E4M3) for both: `dynamic`, `static`, `block`, or `mx` with shared exponents."""
    if kind == "mx":
        return {"weights": _mx(8), "input_activations": _mx(8, dynamic=True)}
    if kind == "block":
        return {
            "weights": _numbers("float", 8, "block", block_structure=[BLOCK, BLOCK]),
            "input_activations": _numbers("float", 8, "group", group_size=BLOCK, dynamic=True),
        }
    if kind == "static":
        return {
            "weights": _numbers("float", 8, "tensor"),
            "input_activations": _numbers("float", 8, "tensor", observer="static_minmax"),
        }
    return {
        "weights": _numbers("float", 8, "channel"),
        "input_activations": _numbers("float", 8, "token", dynamic=True),
    }


def fp4(kind: str, *, activations: bool) -> Scheme:
    """Gives 4-bit floats (E2M1): `nvfp4` or `mxfp4`, for the weights alone or for both."""
    if kind == "mxfp4":
        return {"weights": _mx(4)} | ({"input_activations": _mx(4, dynamic=True)} if activations else {})
    scheme = {"weights": _nv()}
    return scheme | ({"input_activations": _nv(dynamic="local", observer="static_minmax")} if activations else {})


def _nv(**others: Any) -> dict[str, Any]:
    scales = "torch.float8_e4m3fn"
    return _numbers("float", 4, "tensor_group", group_size=16, scale_dtype=scales, zp_dtype=scales, **others)


def _mx(bits: int, **others: Any) -> dict[str, Any]:
    exponents = "torch.uint8"
    return _numbers("float", bits, "group", group_size=32, scale_dtype=exponents, zp_dtype=exponents, **others)


def _numbers(kind: str, bits: int, strategy: str, **others: Any) -> dict[str, Any]:
    return {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True, "dynamic": False, **others}
