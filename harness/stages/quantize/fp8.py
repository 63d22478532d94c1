"""FP8: weights and activations as 8-bit floats (E4M3), the nearly lossless format of recent accelerators.

Four bits of exponent give each number its own scale, so one scale for a row, a token or a block is enough, and there is
nothing to search for. The kinds differ in what shares a scale and in whether that of activations is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, quantize_one_shot
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import fp8

KINDS = ("dynamic", "static", "block", "mx")


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeFp8(QuantizationRecipe):
    """Rounds linear weights and their inputs to 8-bit floats (E4M3, largest 448).

    Does:   by `kind`. dynamic: a scale a row for weights, a scale a token for activations, found as they come. static:
            one scale a matrix, and one for its inputs from the range on the calibration text. block: a scale for each
            128 x 128 weights, and for each 128 inputs of a token. mx (MXFP8): a power of two for each 32 weights or
            inputs, computed in bfloat16. Weights are stored as F8_E4M3.
    Needs:  llm-compressor; for static also text (the corpus, or `data_free`). `overrides` can only keep layers.
    Why:    half of 16 bits almost for free: the control for everything below 8 bits.
    Known:  three bits of fraction move a weight by up to 1/16 of itself. Blocks need to divide the columns, not the
            rows. transformers unpacks the weights and rounds activations in the model's type, so there the outcome is
            `emulated`; FP8 arithmetic needs an accelerator that has it.
    Source: FP8 formats, arXiv 2209.05433; OCP Microscaling Formats 1.0 (mx); `QuantizationModifier` of llm-compressor
            0.14.0.1 with the presets FP8_DYNAMIC, FP8, FP8_BLOCK and MXFP8 of compressed-tensors 0.19.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False

    kind: Literal["dynamic", "static", "block", "mx"] = "dynamic"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        refuse(self.problems())

    @property
    def calibrates(self) -> bool:
        return self.kind == "static"

    @property
    def scheme(self) -> Scheme:
        return fp8(self.kind)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        # llm-compressor rounds to shared exponents in bfloat16 alone.
        dtype = torch.bfloat16 if self.kind == "mx" else None
        quantize_one_shot(self, source, out, dtype=dtype, context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's plain rounding."""
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(config_groups=groups, ignore=ignore)]
