"""Writes a Hugging Face Llama directory as a GGUF file without llama.cpp's converter, for tests that must not need it.

What a Llama needs: its numbers under llama.cpp's names, its byte-level BPE, and its tensors renamed, with the rows of
the query and key matrices reordered: transformers rotates a head's first half against its second, llama.cpp neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

from harness.interfaces import Artifact
from harness.record import ArtifactFacts

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    directory: Path,
    out: Path,
    *,
    matrices: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    pre_tokenizer: str = "gpt-2",
    add_bos: bool = False,
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, weights: weights,
) -> Artifact:
    """Writes `out/model.gguf`, matrices in the given type, and gives it as an artifact.

    `pre_tokenizer` is llama.cpp's name for how text is cut before merges, `add_bos` says whether texts begin with a
    BOS. `change` may replace a tensor, which it is given by its GGUF name.
    """
    config = json.loads((directory / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out / "model.gguf", "llama")
    _add_numbers(writer, config)
    _add_tokenizer(writer, directory, config)
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_add_bos_token(add_bos)
    for name, weights in load_file(directory / "model.safetensors").items():
        new_name, weights = _renamed(name, weights.float().numpy(), config)
        weights = change(new_name, weights)
        if weights.ndim == 1 or matrices == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(new_name, weights)
        else:
            writer.add_tensor(new_name, gguf.quants.quantize(weights, matrices), raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return artifact(out)


def artifact(folder: Path) -> Artifact:
    """Gives a folder with a GGUF file as an artifact."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Artifact(folder, ArtifactFacts(lineage=(), format="gguf", digest="0" * 16, size_bytes=size))


def _add_numbers(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | special
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    template = directory / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def _renamed(name: str, weights: np.ndarray, config: dict) -> tuple[str, np.ndarray]:
    if name in _TOP:
        return _TOP[name], weights
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(part)
    if heads:
        halves = weights.reshape(config[heads], 2, -1, weights.shape[1])
        weights = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))
    return f"blk.{layer}.{_NAMES[part]}.weight", weights
