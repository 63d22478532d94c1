"""What goes on inside a model while it reads: states, attention, queries, keys and values, for teacher and student.

Distillers that look inside compare these. States come from transformers' own outputs; attention distributions are only
given by its plain ("eager") attention, to which a model is switched when they are asked for; queries, keys and values
are caught where the decoder layer's projections give them, before any rotary embedding.

Shapes: B sequences, T tokens, D width, H heads, V vocabulary, N = B * T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from harness.errors import Unsupported
from harness.stages.distill.student import Reader

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Features:
    """What one model showed of one batch, in float32 but for the logits, which stay in their own type.

    `states` are the embeddings and what every decoder layer gave, the last one after the final norm (L + 1 of (B, T,
    D)); `attention` is (B, H, T, T) for every layer, empty if not asked for; `projected` has (B, T, D) of one layer for
    each of PROJECTIONS, empty if not asked for. `heads` is how many query heads the model has.
    """

    logits_NV: Tensor
    states: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    projected: Mapping[str, Tensor]
    heads: int

    @property
    def value_heads(self) -> int:
        """Gives how many heads the values have, which is fewer than `heads` where queries share them."""
        return self.heads * self.projected["v_proj"].shape[-1] // self.projected["q_proj"].shape[-1]


@dataclass(frozen=True)
class Asked:
    """What is to be read beside states and logits: attention of every layer, projections of a layer (from 1)."""

    attention: bool = False
    projections_of: int | None = None


@dataclass(frozen=True)
class Observer:
    """A model with its watched modules. Make it with `observe`."""

    reader: Reader
    asked: Asked
    watched: Mapping[str, torch.nn.Module]

    def features(self, tokens_BT: Tensor) -> Features:
        """Gives what the model shows of the tokens. Raises Unsupported when it does not give its attention."""
        caught: dict[str, Tensor] = {}
        hooks = [module.register_forward_hook(partial(_catch, caught, name)) for name, module in self.watched.items()]
        try:
            seen = self.reader.run(tokens_BT, output_hidden_states=True, output_attentions=self.asked.attention)
        finally:
            for hook in hooks:
                hook.remove()
        attention = [layer for layer in seen.attentions or () if layer is not None]
        if self.asked.attention and len(attention) != count_layers(self.reader):
            raise Unsupported(
                f"the model gives attention for {len(attention)} of its {count_layers(self.reader)} layers",
                remedy="set attention_weight to 0 and leave out `relations: minilm`",
            )
        return Features(
            logits_NV=seen.logits.flatten(0, 1),
            states=tuple(state.float() for state in seen.hidden_states),
            attention=tuple(layer.float() for layer in attention),
            projected={name: tensor.float() for name, tensor in caught.items()},
            heads=count_heads(self.reader),
        )


def observe(reader: Reader, asked: Asked) -> Observer:
    """Gives the model ready to be looked into.

    Raises Unsupported when it has no separate query, key and value projections.
    """
    if asked.attention:
        cast("Any", reader.model).set_attn_implementation("eager")
    watched = {} if asked.projections_of is None else _projections(reader, asked.projections_of)
    return Observer(reader, asked, watched)


def count_layers(reader: Reader) -> int:
    """Gives how many decoder layers the model has."""
    return int(_settings(reader).num_hidden_layers)


def count_heads(reader: Reader) -> int:
    """Gives how many query heads each layer has."""
    return int(_settings(reader).num_attention_heads)


def width(reader: Reader) -> int:
    """Gives how wide the model's states are."""
    return int(_settings(reader).hidden_size)


def _projections(reader: Reader, layer: int) -> dict[str, torch.nn.Module]:
    layers = count_layers(reader)
    found = {}
    for wanted in PROJECTIONS:
        modules = [module for name, module in reader.model.named_modules() if name.rpartition(".")[2] == wanted]
        if len(modules) != layers:
            raise Unsupported(
                f"the model has {len(modules)} modules named {wanted} for {layers} layers, so its queries, keys and"
                " values cannot be told apart",
                remedy="leave out `relations`; hidden states and logits can be compared in any model",
            )
        found[wanted] = modules[layer - 1]
    return found


def _catch(caught: dict[str, Tensor], name: str, *call: Any) -> None:
    _module, _inputs, output = call
    caught[name] = output


def _settings(reader: Reader) -> Any:
    return cast("Any", reader.model).config.get_text_config(decoder=True)
