"""AWQ as GPTQModel does it, written in AutoAWQ's `gemm` layout: the form in which most AWQ checkpoints are passed on.

The method is that of `quantize.awq`: channels that see large activations are scaled up before rounding. Here clipping
is searched as well, as the authors do, and codes lie in words along the rows, eight of them interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._gptqmodel import EXTRA, REQUIREMENTS, SHORTEST, exactly, quantize_gptqmodel
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import integers

if TYPE_CHECKING:
    from torch import Tensor

BITS = 4
GROUPS = (32, 64, 128)


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeGptqmodelAwq(QuantizationRecipe):
    """Scales channels and clips groups by GPTQModel's AWQ, rounds to 4 bits and packs as AutoAWQ does.

    Does:   runs the calibration text through one decoder layer after another. For layers that read the same input it
            tries 20 scales s = mean|x|^r / mean|w|^(1-r), r from 0 to 0.95, and takes the one whose rounded weights
            move the block's output least; 1/s goes into the norm or the layer before. Then, for all but query and key
            projections, it tries 10 bounds from the group's largest weight down to 0.55 of it and keeps the one with
            the least error of the output. Weights go to the nearest of 16 points between the least and the largest
            weight of their group.
    Needs:  GPTQModel; text (the corpus, or `data_free`) in blocks of 11 tokens and more; rows that 64 divides; groups
            that divide the columns of every layer; memory for two copies of the model in bfloat16 and the inputs of a
            block.
    Why:    the authors' recipe with its clipping, by another library than `quantize.awq`, and the layout that other
            engines read.
    Known:  bits (4), the number of scales and bounds, and clipping are the library's own. The search computes in
            bfloat16, to which the model is rounded first (reports say so when it was stored otherwise), and so do the
            scales that are stored. Pairs that do not fit (value and output projections under grouped queries), and
            layers whose partner is kept, are rounded unscaled. A kept layer in front of a scaled one takes up 1/s: it
            computes the same and is not the same bit for bit. All layers have one scheme, so overrides are `keep` only.
            The search for bounds is slow on a CPU: about 20 seconds of one core for a layer of SmolLM2-135M, whatever
            the number of tokens from 512 up. Weights stay packed in transformers; its CPU kernel rounds activations to
            bfloat16. Tried on CPUs only.
    Source: AWQ, arXiv 2306.00978, section 3.2 and mit-han-lab/llm-awq (`auto_scale.py`, `auto_clip.py`); GPTQModel
            7.6.0 (`looper/awq_processor.py`); AutoAWQ 0.2.9 for the layout (`gemm`).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    backend: ClassVar[str] = "awq_torch"
    rows_at_once: ClassVar[int] = 64

    group: int = 128

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}; allowed: {', '.join(map(str, GROUPS))}")
        if self.sequence < SHORTEST:
            raise ValueError(f"sequence is {self.sequence!r}; allowed: from {SHORTEST}, shorter blocks are left out")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        return integers(BITS, group=self.group, symmetric=False)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_gptqmodel(self, source, out, context=context)

    def config(self, assignment: Assignment, device: str) -> Any:
        """Gives GPTQModel's configuration."""
        from gptqmodel import AWQConfig

        return AWQConfig(
            bits=BITS,
            group_size=self.group,
            sym=False,
            dynamic={f"-:{exactly(layer)}": {} for layer in assignment.kept} or None,
            device=device,
            offload_to_disk=False,
            fallback=None,
        )

    def declaration(self, assignment: Assignment) -> Mapping[str, Any]:
        """Gives the full names of all layers that are not packed."""
        return {"modules_to_not_convert": list(assignment.kept)}

    def check(self, layer: str, zeros: Tensor) -> None:
        """Every zero point from 0 to 15 has its place."""
