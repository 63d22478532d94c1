"""Cutting a decoder to a smaller width: which parts stay, and what is left of every weight.

Hidden channels are the same for the whole model, because one residual stream runs through it. Neurons and heads are
chosen in each layer by itself. Key-value heads stay or go with the query heads that read them: of the groups the
strongest stay, and in each of them the same number of query heads, so that the smaller model is again an ordinary
grouped-query decoder.

A weight on an integer grid (see `harness.stages.grids`) can lose rows, which take their scales with them. It can lose
columns only when one group spans the row: otherwise the rest of the columns would move into other groups.

Shapes: L layers, R rows, C columns, G groups a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from harness.errors import Unsupported
from harness.stages.grids import Gridded
from harness.stages.prune._importance import Strengths
from harness.stages.prune.decoder import Axis, Sizes, axes_of, layer_of, resized_config
from harness.stages.prune.depth import lowest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """Which parts stay, ascending: hidden channels, and in each layer neurons, query heads and key-value heads."""

    hidden: Indices
    neurons: tuple[Indices, ...]
    heads: tuple[Indices, ...]
    kv_heads: tuple[Indices, ...]
    head_dim: int

    def along(self, axis: Axis, layer: int | None) -> Tensor | None:
        """Gives the positions that stay on an axis of a weight in a layer; None for an axis that is never cut."""
        if axis in ("vocabulary", "channel"):
            return None
        if axis == "hidden":
            return torch.tensor(self.hidden)
        assert layer is not None, f"{axis} is an axis of layers only"
        if axis == "neuron":
            return torch.tensor(self.neurons[layer])
        heads = self.heads[layer] if axis == "query" else self.kv_heads[layer]
        return (torch.tensor(heads)[:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()


def choose(strengths: Strengths, sizes: Sizes, target: Sizes) -> Kept:
    """Gives the strongest parts, as many as `target` has; of equals the earlier stays."""
    groups = [_strongest_heads(scores_H.tolist(), sizes, target) for scores_H in strengths.heads_LH]
    return Kept(
        hidden=strongest(strengths.hidden_C.tolist(), target.hidden),
        neurons=tuple(strongest(scores_I.tolist(), target.intermediate) for scores_I in strengths.neurons_LI),
        heads=tuple(tuple(head for heads in layer.values() for head in heads) for layer in groups),
        kv_heads=tuple(tuple(layer) for layer in groups),
        head_dim=sizes.head_dim,
    )


def strongest(scores: Sequence[float], count: int) -> Indices:
    """Gives the indices of the `count` highest scores in ascending order; of equals the earlier."""
    removed = frozenset(lowest(scores, len(scores) - count))
    return tuple(index for index in range(len(scores)) if index not in removed)


def _strongest_heads(scores: Sequence[float], sizes: Sizes, target: Sizes) -> dict[int, Indices]:
    """Gives for each key-value head that stays its query heads that stay.

    A group is as strong as those of its heads that would stay, by the Euclidean norm of their strengths.
    """
    best: list[Indices] = []
    for group in range(sizes.kv_heads):
        own = range(group * sizes.group, (group + 1) * sizes.group)
        best.append(tuple(own[place] for place in strongest([scores[head] for head in own], target.group)))
    power = [sum(scores[head] ** 2 for head in heads) for heads in best]
    return {group: best[group] for group in strongest(power, target.kv_heads)}


def cut_model(model: PreTrainedModel, kept: Kept, *, target: Sizes) -> PreTrainedModel:
    """Gives a new model of the sizes `target` with the weights that stay; `model` is left as it is."""
    weights: dict[str, Tensor] = cast("Any", model).state_dict()
    loaded: Any = cast("Any", type(model)).from_pretrained(
        None,
        config=resized_config(model.config, target),
        state_dict={name: _cut(name, tensor, kept) for name, tensor in weights.items()},
        dtype=model.dtype,
        output_loading_info=True,
    )
    small, info = loaded
    assert not any(info.values()), f"the cut weights do not fit the smaller model: {info}"
    return cast("PreTrainedModel", small.eval())


def _cut(name: str, tensor: Tensor, kept: Kept) -> Tensor:
    for dimension, positions in _positions(name, kept):
        tensor = tensor.index_select(dimension, positions.to(tensor.device))
    return tensor.contiguous()


def _positions(name: str, kept: Kept) -> Iterator[tuple[int, Tensor]]:
    """Gives each dimension of a weight that may be cut with the positions that stay."""
    axes = axes_of(name)
    assert axes is not None, f"{name} is no weight of a Llama-type decoder"
    for dimension, axis in enumerate(axes):
        positions = kept.along(axis, layer_of(name))
        if positions is not None:
            yield dimension, positions


def require_cuttable(grids: Mapping[str, Gridded], sizes: Sizes, target: Sizes) -> None:
    """Raises Unsupported when columns would have to leave a weight whose rows are cut into several groups."""
    for name, gridded in grids.items():
        axes = axes_of(name)
        assert axes is not None, f"{name} is no weight of a Llama-type decoder"
        if gridded.scales_RG.shape[1] > 1 and sizes.along(axes[1]) != target.along(axes[1]):
            raise Unsupported(
                f"{name} lies on a grid with {gridded.scales_RG.shape[1]} groups a row, and columns of it would go",
                remedy="quantize with `group: null`, or prune before quantizing",
            )


def cut_grids(grids: Mapping[str, Gridded], kept: Kept) -> dict[str, Gridded]:
    """Gives the grids of the weights that stay: rows keep their scales, zero points and weights before rounding."""
    rows = {name: dict(_positions(name, kept))[0] for name in grids}
    return {
        name: replace(
            gridded,
            scales_RG=gridded.scales_RG.index_select(0, rows[name]),
            zeros_RG=gridded.zeros_RG.index_select(0, rows[name]),
            unrounded_RC=_cut(name, gridded.unrounded_RC, kept),
        )
        for name, gridded in grids.items()
    }
