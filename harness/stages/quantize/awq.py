"""AWQ: channels that see large activations are scaled up before rounding, so that rounding hurts them less.

A few input channels carry most of what a layer computes. Multiplying their weights by s and dividing what comes in by s
changes nothing, but the weights of that channel then use more of the grid. AWQ searches, block by block, for the
exponent that turns mean activations into such scales with the least error, and folds 1/s into the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, quantize_one_shot
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import BITS, integers


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeAwq(QuantizationRecipe):
    """Scales the channels of the linear weights by AWQ's search, rounds them to the nearest integer and packs them.

    Does:   runs the calibration text through one decoder layer after another. For layers that read the same input it
            tries `steps` scales s = mean|x|^r, with r from 0 to 1 (`duo_scaling` also divides by mean|w|^(1-r)), and
            takes the one whose rounded weights move the block's output least. 1/s goes into the norm or the layer
            before. Then weights go to the nearest point of their group's grid and are packed.
    Needs:  llm-compressor, which has to know the architecture's layers; text (the corpus, or `data_free`); groups that
            divide the columns of every layer; time for `steps` forward passes of every block of a layer.
    Why:    the other mainstream weight-only quantizer: no Hessian, little to overfit to, strong with few samples.
    Known:  no weight is kept in higher precision, though AWQ is often told that way. The authors also search a clipping
            of each group, which the library does not. With `duo_scaling` weights join the scale, which the paper has
            not; without it the scales are the paper's. Pairs that do not fit (value and output projections under
            grouped queries) are left unscaled, as the authors do; the notes say so. Norms change, embedding and head
            do not. transformers unpacks the weights when it loads them, so there the outcome is `emulated`.
    Source: AWQ, arXiv 2306.00978, section 3.2 and mit-han-lab/llm-awq (`auto_scale.py`); `AWQModifier` with
            `QuantizationModifier` of llm-compressor 0.14.0.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group", "symmetric")

    bits: int = 4
    group: int | None = 128
    symmetric: bool = False
    duo_scaling: bool = True
    steps: int = 20

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if self.steps < 3:
            raise ValueError(f"steps is {self.steps!r}; allowed: from 3")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=self.symmetric)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_one_shot(self, source, out, context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's AWQ, which only scales, and its plain rounding."""
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        scaling = AWQModifier(duo_scaling=self.duo_scaling, n_grid=self.steps)
        return [scaling, QuantizationModifier(config_groups=groups, ignore=ignore)]
