"""How strongly the parts of a decoder speak: activations on text, read with hooks, no gradients.

Every channel gets the same statistic. Within one block of text the mean of |x| over its positions, over the blocks the
Euclidean norm of these means:

    strength_c = sqrt(sum over blocks n of (mean over positions t of |x_ntc|)^2)

    MLP neurons       x is what enters `down_proj`
    attention heads   x is what enters `o_proj`; a head's strength is the Euclidean norm over its channels
    hidden channels   x is what leaves each layer's two norms; strengths are summed over all of these norms

Source: Minitron, arXiv 2407.14679, section 2.2 (mean over the sequence, L2 over the batch); NVIDIA Model-Optimizer,
`modelopt/torch/prune/plugins/mcore_minitron.py`: what enters which projection, the norm over a head, the sum of norms.

Shapes: N blocks, T positions, L layers, C hidden channels, I neurons, H query heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.interfaces import StageContext
from harness.stages.prune.calibration import read_through
from harness.stages.prune.decoder import Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

Side = Literal["input", "output"]
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Strengths:
    """Strengths in float64: hidden channels (C,), neurons (L, I), query heads (L, H)."""

    hidden_C: Tensor
    neurons_LI: Tensor
    heads_LH: Tensor


def measure_strengths(model: PreTrainedModel, sizes: Sizes, *, blocks_NT: Blocks, context: StageContext) -> Strengths:
    """Gives the strengths of all parts from one pass over the text. Raises ModelError for activations of NaN."""
    layers = [f"model.layers.{index}" for index in range(sizes.layers)]
    sides: dict[str, Side] = dict.fromkeys((f"{layer}.{norm}" for layer in layers for norm in NORMS), "output")
    sides |= dict.fromkeys(
        (f"{layer}.{part}" for layer in layers for part in ("self_attn.o_proj", "mlp.down_proj")), "input"
    )
    with _watched(model, sides) as squares:
        read_through(model, blocks_NT, progress=context.progress, doing="channel strengths")
    if not all(bool(square.isfinite().all()) for square in squares.values()):
        raise ModelError("activations are not finite: channel strengths are NaN or infinite")
    heads_LHD = torch.stack([squares[f"{layer}.self_attn.o_proj"].sqrt() for layer in layers])
    return Strengths(
        hidden_C=torch.stack([squares[f"{layer}.{norm}"].sqrt() for layer in layers for norm in NORMS]).sum(0),
        neurons_LI=torch.stack([squares[f"{layer}.mlp.down_proj"].sqrt() for layer in layers]),
        heads_LH=heads_LHD.reshape(sizes.layers, sizes.heads, sizes.head_dim).norm(dim=-1),
    )


@contextmanager
def _watched(model: PreTrainedModel, sides: dict[str, Side]) -> Iterator[dict[str, Tensor]]:
    """Adds up, for each module, the squared means of |x| over the positions of every block that runs through it."""
    squares: dict[str, Tensor] = {}

    def hook(name: str, side: Side) -> Callable[..., None]:
        def add(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x_NTC = inputs[0] if side == "input" else output
            square_C = x_NTC.float().abs().mean(dim=1).double().square().sum(dim=0).cpu()
            squares[name] = squares[name] + square_C if name in squares else square_C

        return add

    modules = cast("Any", model)
    handles = [modules.get_submodule(name).register_forward_hook(hook(name, side)) for name, side in sides.items()]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
