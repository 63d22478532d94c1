"""SmoothQuant: what is hard to round in the activations is moved into the weights, and both go to 8-bit integers.

Activations of language models have a few channels that are far larger than the rest, and one scale a token leaves the
rest with few steps. Dividing each channel by s and multiplying its weights by s changes nothing, and evens them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, quantize_one_shot
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import int8_both

ROUNDING = ("rtn", "gptq")


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeSmoothquant(QuantizationRecipe):
    """Smooths activations into weights and makes both 8-bit integers (W8A8).

    Does:   measures the range of every input channel on the calibration text, takes
            s = range^`strength` / (2 max|w|)^(1 - `strength`), multiplies the weights by s and folds 1/s into the norm
            before. Weights then get 8-bit integers with a scale a row, by plain rounding or GPTQ (`rounding`);
            activations get 8-bit integers with a scale a token, found as they come. `strength` 0 to 1; the paper has
            0.5 (0.85 for LLaMA).
    Needs:  llm-compressor, which has to know the architecture's layers; text (the corpus, or `data_free`).
    Why:    integer arithmetic on both sides: half the bytes, and twice the throughput where hardware has it.
    Known:  the library takes max - min of a channel where the paper takes max|x|, and doubles max|w| to go with it:
            the same for channels that are symmetric about zero. Only inputs that come from a norm are smoothed, so the
            inputs of output and down projections keep their outliers. transformers unpacks the weights and rounds
            activations in floating point, so there the outcome is `emulated`.
    Source: SmoothQuant, arXiv 2211.10438, equation 4; `SmoothQuantModifier` with `QuantizationModifier` or
            `GPTQModifier` of llm-compressor 0.14.0.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False

    strength: float = 0.5
    rounding: Literal["rtn", "gptq"] = "rtn"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength!r}; allowed: from 0 to 1")
        if self.rounding not in ROUNDING:
            raise ValueError(f"rounding is {self.rounding!r}; allowed: {', '.join(ROUNDING)}")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        return int8_both()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_one_shot(self, source, out, context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's smoothing, and the rounding that follows it."""
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        rounding = GPTQModifier if self.rounding == "gptq" else QuantizationModifier
        smoothing = SmoothQuantModifier(smoothing_strength=self.strength, ignore=ignore)
        return [smoothing, rounding(config_groups=groups, ignore=ignore)]
