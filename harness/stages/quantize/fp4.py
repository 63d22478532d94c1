"""FP4: 4-bit floats (E2M1) with a scale for a few weights each: NVFP4 and MXFP4.

An E2M1 number is one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and its negative. NVFP4 gives every 16 weights an 8-bit float as
their scale and the matrix one 32-bit scale above those; MXFP4 gives every 32 weights a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, quantize_one_shot
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import fp4

KINDS = ("nvfp4", "mxfp4")
ROUNDING = ("rtn", "gptq")


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeFp4(QuantizationRecipe):
    """Rounds linear weights, and with `activations` their inputs too, to 4-bit floats and packs them two to a byte.

    Does:   nvfp4: s2 = max|w| / (6 * 448) for the matrix, and for each 16 columns max|w| / (6 * s2) rounded to E4M3;
            mxfp4: for each 32 columns a power of two from the exponent of max|w|. Codes are the nearest E2M1 values, by
            plain rounding or GPTQ (`rounding`). With `activations` inputs are rounded the same way as they come; for
            nvfp4 their matrix-wide scale is taken from the calibration text.
    Needs:  llm-compressor; text (the corpus, or `data_free`) for GPTQ, and for nvfp4 with activations; columns that 16
            or 32 divide. The model is loaded in bfloat16, whatever it is stored in. `overrides` can only keep layers.
    Why:    the 4-bit formats that accelerators compute with; NVFP4 is where quantization-aware distillation is used.
    Known:  4.5 bits a weight for nvfp4 (and one float a matrix), 4.25 for mxfp4. On Gaussian weights the relative
            squared error is .0090 against .0138. Layers that kernels compute as one (query, key and value; gate and up)
            share s2. The library raises the exponent of an MX scale by one when the largest weight of its group would
            be 7 or more, where the standard takes the floor and cuts at 6. transformers unpacks the weights and rounds
            activations in bfloat16, so there the outcome is `emulated`.
    Source: OCP Microscaling Formats 1.0; NVFP4 in nvidia-modelopt (`nvfp4_tensor.py`); `QuantizationModifier` or
            `GPTQModifier` of llm-compressor 0.14.0.1 with the presets NVFP4(A16) and MXFP4(A16) of compressed-tensors.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False

    kind: Literal["nvfp4", "mxfp4"] = "nvfp4"
    activations: bool = False
    rounding: Literal["rtn", "gptq"] = "rtn"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.rounding not in ROUNDING:
            raise ValueError(f"rounding is {self.rounding!r}; allowed: {', '.join(ROUNDING)}")
        refuse(self.problems())

    @property
    def calibrates(self) -> bool:
        return self.rounding == "gptq" or (self.activations and self.kind == "nvfp4")

    @property
    def scheme(self) -> Scheme:
        return fp4(self.kind, activations=self.activations)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        # llm-compressor packs these formats from bfloat16 alone.
        quantize_one_shot(self, source, out, dtype=torch.bfloat16, context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's plain rounding, or GPTQ."""
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier

        rounding = GPTQModifier if self.rounding == "gptq" else QuantizationModifier
        return [rounding(config_groups=groups, ignore=ignore)]
