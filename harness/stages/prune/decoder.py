"""What a Llama-type decoder is made of, as sizes and the axes of every weight.

Every weight of such a model lies between a few axes: hidden channels, MLP neurons, query heads, key-value heads. One
table says which axes each weight has, so that checking a model, cutting it and counting its parameters all read the
same facts. A model with a weight that is not in the table, or that has another shape, is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from harness.errors import SpecError, Unsupported

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

Axis = Literal["vocabulary", "hidden", "query", "key", "channel", "neuron"]

# Their code was read: weights with these names multiply these axes, and nothing else depends on the sizes (Gemma scales
# its embedding by the hidden size and Granite the stream by constants, under the very same names).
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LAYERS = re.compile(r"model\.layers\.(\d+)\.(.+)")
OUTER_AXES: Mapping[str, tuple[Axis, ...]] = {
    "model.embed_tokens.weight": ("vocabulary", "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": ("vocabulary", "hidden"),
}
LAYER_AXES: Mapping[str, tuple[Axis, ...]] = {
    "input_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.weight": ("key", "hidden"),
    "self_attn.k_proj.bias": ("key",),
    "self_attn.v_proj.weight": ("key", "hidden"),
    "self_attn.v_proj.bias": ("key",),
    "self_attn.q_norm.weight": ("channel",),
    "self_attn.k_norm.weight": ("channel",),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "self_attn.o_proj.bias": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
    "mlp.gate_proj.weight": ("neuron", "hidden"),
    "mlp.gate_proj.bias": ("neuron",),
    "mlp.up_proj.weight": ("neuron", "hidden"),
    "mlp.up_proj.bias": ("neuron",),
    "mlp.down_proj.weight": ("hidden", "neuron"),
    "mlp.down_proj.bias": ("hidden",),
}


@dataclass(frozen=True)
class Sizes:
    """How large a decoder is; every head is `head_dim` channels wide."""

    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Gives how many query heads share a key-value head."""
        return self.heads // self.kv_heads

    def along(self, axis: Axis) -> int:
        """Gives the length of an axis."""
        lengths: Mapping[Axis, int] = {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "query": self.heads * self.head_dim,
            "key": self.kv_heads * self.head_dim,
            "channel": self.head_dim,
            "neuron": self.intermediate,
        }
        return lengths[axis]


def axes_of(name: str) -> tuple[Axis, ...] | None:
    """Gives the axes of the weight called `name`, or None when no Llama-type decoder has such a weight."""
    inside = LAYERS.fullmatch(name)
    return LAYER_AXES.get(inside[2]) if inside else OUTER_AXES.get(name)


def layer_of(name: str) -> int | None:
    """Gives the number of the layer a weight is in, or None for one outside all layers."""
    inside = LAYERS.fullmatch(name)
    return int(inside[1]) if inside else None


def decoder_sizes(model: PreTrainedModel) -> Sizes:
    """Gives the sizes of a model. Raises Unsupported, naming what was found, when it is no Llama-type decoder."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise Unsupported(
            f"the model is of type {config.model_type!r}; Llama-type decoders are {', '.join(FAMILIES)}",
            remedy="prune its depth (`prune.depth`), or leave the combination out with an exclusion",
        )
    weights: dict[str, Tensor] = cast("Any", model).state_dict()
    sizes = Sizes(
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=len(weights["model.layers.0.self_attn.q_proj.weight"]) // config.num_attention_heads,
    )
    odd = [f"{name} {tuple(tensor.shape)}" for name, tensor in weights.items() if not _fits(name, tensor, sizes)]
    if odd:
        raise Unsupported(
            f"the model has {len(odd)} weights that a Llama-type decoder has not, first {odd[0]}",
            remedy="prune its depth (`prune.depth`), or leave the combination out with an exclusion",
        )
    return sizes


def _fits(name: str, tensor: Tensor, sizes: Sizes) -> bool:
    axes = axes_of(name)
    return axes is not None and tuple(tensor.shape) == tuple(sizes.along(axis) for axis in axes)


def resized_config(config: PreTrainedConfig, sizes: Sizes) -> PreTrainedConfig:
    """Gives the configuration with other sizes and the head width written out; raises as `changed_config` does."""
    changes = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
    }
    return changed_config(config, changes)


def changed_config(config: PreTrainedConfig, changes: Mapping[str, object]) -> PreTrainedConfig:
    """Gives the configuration with other settings.

    Raises SpecError when transformers refuses them (Llama wants `hidden_size` to be a multiple of the heads).
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return type(config).from_dict(config.to_dict() | dict(changes))
    except (StrictDataclassError, ValueError) as wrong:
        reason = str(wrong).splitlines()[-1].strip()
        raise SpecError(f"transformers refuses a {config.model_type} model of these sizes: {reason}") from wrong
