"""GPTQ: weights are rounded one column at a time, and those to the right make up for each rounding.

Rounding a weight changes what its output gives for the calibration text. GPTQ knows from H = 2 X X^T how inputs go
together, so after each column it moves the columns that are still to come to where the layer's output comes closest to
what it was. The grid is that of plain rounding; only which point of it a weight goes to is chosen better.
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
class QuantizeGptq(QuantizationRecipe):
    """Rounds the linear weights to integers by GPTQ and packs them.

    Does:   runs the calibration text through one decoder layer after another, takes H = 2 X X^T plus `damping` times
            its mean diagonal for every linear layer, and rounds its columns in order of diag(H) (`act_order`) or as
            they lie, spreading each error over the columns that follow. Groups of `group` columns (null: a whole row)
            share a scale; with `act_order` a column keeps the group of its place, so no index is stored. Codes are
            packed in 32-bit words (layout pack-quantized of compressed-tensors).
    Needs:  llm-compressor; text (the corpus, or `data_free`); a model that torch.fx can trace layer by layer; memory
            for one Hessian (columns squared, float32) per linear layer of a decoder layer; groups that divide the
            columns of every layer.
    Why:    the reference weight-only quantizer at 3 and 4 bits, with fast kernels on GPUs (W4A16).
    Known:  published numbers are calibrated on 128 blocks of 2048 tokens of C4, with column order by diag(H); without
            that order GPTQ can be worse than plain rounding (LLaMA-7B, 4 bits: 7.15 against 6.29). Scales come from the
            range of the weights before any update (static groups), where the authors' code takes them as it goes unless
            told otherwise. They are stored in the model's type, so float32 models have 32-bit scales. A layer whose
            Hessian cannot be inverted would be rounded plainly by the library; the stage fails instead: use more
            tokens or damping. transformers unpacks the weights when it loads them, so there the outcome is `emulated`.
    Source: GPTQ, arXiv 2210.17323, algorithm 1 and IST-DASLab/gptq; `GPTQModifier` of llm-compressor 0.14.0.1.
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
    symmetric: bool = True
    act_order: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping is {self.damping!r}; allowed: a fraction of the mean diagonal, between 0 and 1")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=self.symmetric)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_one_shot(self, source, out, context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's GPTQ."""
        from llmcompressor.modifiers.gptq import GPTQModifier

        order = "static" if self.act_order else None
        return [GPTQModifier(config_groups=groups, ignore=ignore, actorder=order, dampening_frac=self.damping)]
