"""Decoders of hqq's and quanto's packed weights, written from their packing, and small packed folders made by hand.

Shapes: R rows, C columns, P packed lines.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import Coverage, prove
from tests.stages.quantize.packed_world import tensors

LAYER = "model.layers.0.self_attn.q_proj"


def handmade(folder: Path, parts: dict[str, np.ndarray], quantization: dict) -> Path:
    """A folder with one packed layer and an embedding, no library involved."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    plain = {"model.embed_tokens.weight": np.zeros((4, 16), np.float32)}
    save_file(plain | {f"{LAYER}.{part}": array for part, array in parts.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return folder


def proved(folder: Path, shape: tuple[int, int]) -> Coverage:
    """The proof for a folder made by hand, whose layer has that many rows and columns."""
    return prove(folder, Architecture({LAYER: shape}, "model.embed_tokens", "lm_head", tied=True))


def lines_of(words_PM: np.ndarray, *, bits: int, word: int, highest_first: bool) -> np.ndarray:
    """Codes, one line after another: slot k of every word belongs to lines k * P to (k + 1) * P - 1."""
    slots = word // bits
    places = [slots - 1 - slot if highest_first else slot for slot in range(slots)]
    return np.concatenate([(words_PM.astype(np.int64) >> (bits * place)) & (2**bits - 1) for place in places])


def decode_hqq(folder: Path, module: str, *, bits: int, axis: int = 1) -> np.ndarray:
    """The weights (R, C) in float64: (code - zero) * scale."""
    stored = {name: tensor.double().numpy() for name, tensor in tensors(folder, module).items()}
    scale = stored["scale"]
    shape = stored["weight_shape"].astype(int)
    count = scale.size if axis == 1 else shape.prod() // scale.size
    codes = lines_of(stored["W_q"], bits=bits, word=30 if bits == 3 else 8, highest_first=True)[:count]
    return ((codes - stored["zero"]) * scale).reshape(shape)


def decode_quanto(folder: Path, module: str) -> np.ndarray:
    """The weights (R, C) in float64: code * scale, less the shift where there is one."""
    stored = {name: tensor.double().numpy() for name, tensor in tensors(folder, module).items()}
    if "weight._data" in stored:
        return stored["weight._data"] * stored["weight._scale"]
    packed, scale = stored["weight._data._data"], stored["weight._scale"]
    codes = lines_of(packed, bits=8 * len(packed) // len(scale), word=8, highest_first=False)
    return (codes * scale - stored["weight._shift"]).reshape(stored["weight_shape"].astype(int))


def computed_weight(layer) -> np.ndarray:
    """The weights (R, C) that a layer multiplies with, seen in what it gives for unit vectors."""
    import torch

    with torch.inference_mode():
        return layer(torch.eye(layer.in_features)).T.double().numpy()


def output_difference(model, other) -> float:
    """How far a model's logits are from another's, relative to theirs."""
    import torch

    tokens = torch.randint(384, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, wanted = model(tokens).logits, other(tokens).logits
    return float((found - wanted).norm() / wanted.norm())
