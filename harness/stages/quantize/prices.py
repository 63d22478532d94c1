"""What a layer takes in a file at a number of bits: what a search for mixed precision pays with.

Counted as the layout pack-quantized stores it, so that the budget holds for the file and not for an ideal: the codes of
a row fill whole 32-bit words, every group has a scale in the model's own type and, where the grid is asymmetric, a zero
point, packed along the rows in whole words; a shape of two 64-bit integers comes with every layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from harness.stages.quantize.proof.architecture import Architecture

KEPT: Final = 16
"""The choice that leaves a layer as it is; it counts with the bits it is stored in."""
WORD, SHAPE_BITS = 32, 2 * 64


class Grouped(Protocol):
    """What says how scales are shared."""

    @property
    def group(self) -> int | None: ...
    @property
    def symmetric(self) -> bool: ...


@dataclass(frozen=True)
class Prices:
    """Bits that layers take; `float_bits` are those of a weight that is left as it is, and of a scale."""

    shapes: Mapping[str, tuple[int, int]]
    float_bits: int
    group: int | None
    symmetric: bool

    @classmethod
    def of(cls, grouped: Grouped, architecture: Architecture, folder: Path) -> Self:
        """Gives the prices for a model in a folder."""
        from harness.stages.hf_folder import stored_dtype

        return cls(architecture.linears, 8 * stored_dtype(folder).itemsize, grouped.group, grouped.symmetric)

    def weights(self, layers: Iterable[str]) -> int:
        """Gives how many weights the layers have."""
        return sum(math.prod(self.shapes[layer]) for layer in layers)

    def bits(self, layer: str, choice: int) -> int:
        """Gives the bits that a layer takes in a file."""
        rows, columns = self.shapes[layer]
        if choice == KEPT:
            return rows * columns * self.float_bits
        groups = math.ceil(columns / self.group) if self.group else 1
        codes = rows * _words(columns * choice)
        zeros = 0 if self.symmetric else _words(rows * choice) * groups
        return codes + zeros + rows * groups * self.float_bits + SHAPE_BITS


def _words(bits: int) -> int:
    return math.ceil(bits / WORD) * WORD
