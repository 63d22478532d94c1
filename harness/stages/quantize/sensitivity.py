"""How much a model changes when one layer is rounded: what a search for mixed precision decides by.

For a layer and a number of bits its weights alone are rounded to the nearest points of a grid, and the model reads a
text again: the sensitivity is KL(reference || that model), averaged over all tokens. Nothing else moves, so what two
layers do to each other is not seen; that the sum of sensitivities is close to what all choices together cost is an
assumption, which whoever uses them should check afterwards. The squared error of the weights, which needs no text, is
noted beside it.

Every number is written down as it comes, so that a killed search goes on where it was.

Shapes: N blocks, T tokens, V vocabulary, R rows, C columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from harness.errors import ModelError
from harness.interfaces import StageContext
from harness.spec import Value
from harness.stages.distill.losses import forward_kl
from harness.stages.quantize.grid import Grid, dequantize, quantize_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

POSITIONS = 128
"""Positions whose distributions are compared at a time: vocabularies are large."""


class Sensitivity(Value):
    """What rounding one layer to one number of bits does: to the weights, and, where text was read, to the model."""

    layer: str
    bits: int
    squared_error: float
    kl: float | None = None

    @property
    def divergence(self) -> float:
        """The KL, where it was measured."""
        assert self.kl is not None, f"{self.layer} was not measured on text"
        return self.kl


_TABLE = TypeAdapter(tuple[Sensitivity, ...])


class Table:
    """All sensitivities measured so far, in a file that is always whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        rows = _TABLE.validate_json(file.read_bytes()) if file.exists() else ()
        self._rows = {(row.layer, row.bits): row for row in rows}

    @property
    def rows(self) -> tuple[Sensitivity, ...]:
        return tuple(self._rows.values())

    def get(self, layer: str, bits: int) -> Sensitivity | None:
        """Gives what is known; None where nothing was measured."""
        return self._rows.get((layer, bits))

    def at(self, layer: str, bits: int) -> Sensitivity:
        """Gives what was measured."""
        return self._rows[layer, bits]

    def add(self, row: Sensitivity) -> None:
        """Writes one number down."""
        self._rows[row.layer, row.bits] = row
        aside = self._file.with_suffix(".new")
        aside.write_bytes(_TABLE.dump_json(self.rows))
        os.replace(aside, self._file)


class Reference:
    """What a model says before anything is rounded: blocks of tokens and the logits at every position, in its type."""

    def __init__(self, model: PreTrainedModel, blocks_NT: Blocks) -> None:
        self._blocks_NT = torch.from_numpy(blocks_NT)
        self.dtype = str(model.dtype).removeprefix("torch.")
        config: Any = model.config
        self.attention: str = config._attn_implementation
        self._logits_NTV = [_logits(model, block_T) for block_T in self._blocks_NT]

    def divergence(self, model: PreTrainedModel) -> float:
        """Gives KL(reference || model) in nats, the mean over all tokens. Raises ModelError when it is no number."""
        total = 0.0
        for block_T, expected_TV in zip(self._blocks_NT, self._logits_NTV, strict=True):
            found_TV = _logits(model, block_T)
            for start in range(0, len(block_T), POSITIONS):
                rows = slice(start, start + POSITIONS)
                total += float(forward_kl(expected_TV[rows], found_TV[rows]).double().sum())
        mean = total / self._blocks_NT.numel()
        if not mean < float("inf"):
            raise ModelError(f"the divergence from the model before rounding is {mean}")
        return mean


def _logits(model: PreTrainedModel, block_T: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(block_T[None].to(model.device), use_cache=False).logits[0]


def measure(
    model: PreTrainedModel,
    candidates: Mapping[str, Sequence[Grid]],
    *,
    reference: Reference | None,
    table: Table,
    context: StageContext,
) -> None:
    """Fills the table with every layer on every one of its grids; without a reference with the weights' error alone.

    What the table has already is not measured again. The model is left as it was.
    """
    wanted = [(layer, grid) for layer, grids in candidates.items() for grid in grids]
    for number, (layer, grid) in enumerate(wanted):
        known = table.get(layer, grid.bits)
        if known is not None and (known.kl is not None or reference is None):
            continue
        context.progress(number / len(wanted), f"round {layer} to {grid.bits} bits")
        with rounded(model, layer, grid) as squared_error:
            kl = None if reference is None else reference.divergence(model)
        table.add(Sensitivity(layer=layer, bits=grid.bits, squared_error=squared_error, kl=kl))


@contextmanager
def rounded(model: PreTrainedModel, layer: str, grid: Grid) -> Iterator[float]:
    """Rounds one layer inside, and gives the squared error of its weights."""
    weight_RC: Any = model.get_parameter(f"{layer}.weight")
    before_RC = weight_RC.detach().clone()
    after_RC = dequantize(quantize_groups(before_RC, grid), grid).to(before_RC.dtype)
    with torch.no_grad():
        weight_RC.copy_(after_RC)
    try:
        yield float((after_RC.double() - before_RC.double()).square().sum())
    finally:
        with torch.no_grad():
            weight_RC.copy_(before_RC)


def reading_together(model: PreTrainedModel, layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Gives the layers in sets that are given one and the same input, such as queries, keys and values.

    These are what fused kernels compute at once and want in one precision. They are found by letting the model read two
    tokens, not by their names. A layer that is not reached stands alone. The order is that of `layers`.
    """
    arrived: dict[str, Tensor] = {}  # holds the inputs, so that no two share an address because one is gone

    def hook(name: str) -> Any:
        def see(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            arrived.setdefault(name, args[0] if args else named["input"])

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in layers]
    try:
        _logits(model, torch.arange(2))
    finally:
        for handle in handles:
            handle.remove()
    sets: dict[object, list[str]] = {}
    for name in layers:
        sets.setdefault(id(arrived[name]) if name in arrived else name, []).append(name)
    return [tuple(members) for members in sets.values()]
