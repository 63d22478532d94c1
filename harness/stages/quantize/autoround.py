"""AutoRound: learns which way each weight is rounded and how far each group is clipped, by the sign of a gradient.

Plain rounding takes the nearest point of a grid. AutoRound lets every weight move by up to half a step before it is
rounded, and every group's range shrink, and finds both for one decoder layer at a time: it runs the calibration text
through the layer, compares the output with what it was, and steps by the sign of the gradient. What is kept is the best
output seen. The grid is that of plain rounding, so the result has any layout that plain rounding has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._auto_round import (
    AWQ_BITS,
    EXPORTS,
    EXTRA,
    REQUIREMENTS,
    AutoRoundRecipe,
    quantize_auto_round,
    whole_numbers,
)
from harness.stages.quantize.recipe import Scheme
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeAutoround(AutoRoundRecipe):
    """Rounds the linear weights to integers by AutoRound and packs them.

    Does:   for one decoder layer after another, `iters` steps of signed gradient descent on the rounding of every
            weight (within half a step) and on the range of every group (at most as wide as the weights), so that the
            layer's output for `batch` blocks of text comes closest to what it was; each layer sees what the quantized
            ones before it give. The best step is kept. `iters: 0` is plain rounding without text. Groups of `group`
            columns (null: a whole row) share a scale in float16. `layout` is how it is packed: `autoround` (each layer
            may have its own bits and group), `gptq` or `awq` (4 bits, in groups), both with one precision for all.
    Needs:  auto-round, and gptqmodel (gptq: and optimum) for the other layouts; text (the corpus, or `data_free`), when
            `iters` is not 0; rows and columns that are multiples of 32, and groups that divide the columns of every
            layer; time: tens of seconds for each million weights on a CPU core.
    Why:    among the best weight-only quantizers at 2 to 4 bits, without a Hessian, and it adds nothing to inference.
    Known:  published numbers are calibrated on 128 blocks of 2048 tokens of the Pile with 200 steps (the default here
            has 16384 tokens). The model is tuned in float32, where the library on a CPU would take bfloat16, and what
            is not quantized is written in the type it came in (float32 as bfloat16, since no kernel takes it; 4-bit
            asymmetric models in the layout autoround as float16, since they lie as awq there). Symmetric grids have
            2^bits points of which one is the largest weight, so scales may be negative, and `iters: 0` differs from
            `quantize.rtn`, whose grid is wider. Text that equals the tokenizer's padding token, and the last token of
            a block, is left out of the loss. The same seed gives the same bytes on the same threads. The library would
            skip layers that are no multiple of 32; the stage refuses them. It writes float16 as the type of gptq and
            awq folders; here it is the type that was proved. transformers keeps the weights packed. The layout
            autoround computes with the library's `QuantLinear`, which unpacks in every call and gives what the model in
            memory gave, bit for bit. At 4 bits gptq and awq compute with gptqmodel's `TorchAtenLinear` in bfloat16,
            whose roundings differ: a model that bfloat16 itself moves by more than the reload proof allows
            (SmolLM2-135M: 0.085 of its logits' spread) fails that proof there.
    Source: AutoRound (SignRound), arXiv 2309.05516, equations 3 to 6; auto-round 0.15.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group")

    bits: int = 4
    layout: str = "autoround"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.layout not in EXPORTS:
            raise ValueError(f"layout is {self.layout!r}; allowed: {', '.join(EXPORTS)}")
        if self.layout == "awq" and (self.bits != AWQ_BITS or self.group is None):
            raise ValueError(f"layout is 'awq' with bits {self.bits} and group {self.group}; allowed: 4 bits in groups")
        refuse(self.problems())
        if self.layout != "autoround" and any(isinstance(change, Mapping) for change in self.overrides.values()):
            raise ValueError(
                f"overrides is {dict(self.overrides)!r}; allowed with the layout {self.layout}: keep, since it has one "
                "precision for all layers"
            )

    @property
    def calibrates(self) -> bool:
        """False for plain rounding."""
        return self.iters > 0

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=self.symmetric)

    def precision(self, blocks_NT: Blocks | None) -> Any:
        """Gives one scheme for all."""
        from auto_round import QuantizationScheme

        return QuantizationScheme(**whole_numbers(self.bits, group=self.group, symmetric=self.symmetric))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_auto_round(self, source, out, layout=self.layout, context=context)
