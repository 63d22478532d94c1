"""SparseGPT: weights are zeroed one column at a time, and those to the right make up for each loss.

Zeroing a weight changes what its output gives for the calibration text. The second-order update of the optimal brain
surgeon says which weight costs least and how the others must move to make good for it. SparseGPT applies it column by
column with one inverse Hessian for all rows, which makes it feasible for large matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.prune._llm_compressor import Calibrated, prune_calibrated
from harness.stages.prune.calibration import require_text

BLOCK = 128  # columns for which the mask is chosen at once, as in the paper


@final
@dataclass(frozen=True, kw_only=True)
class PruneSparseGpt(Calibrated):
    """Zeroes linear weights of the decoder by optimal-brain-surgeon scores and updates the weights that stay.

    Does:   runs `tokens` tokens of the corpus in blocks of `sequence` through one decoder layer after another, takes
            H = sum x x^T plus `damping` times its mean diagonal, and goes through the columns in blocks of 128: the
            lowest `sparsity` of w^2 / [H^-1]_jj in a block become zero (or n in every m columns with `pattern: n:m`),
            and each error is spread over the columns to the right.
    Needs:  llm-compressor; a corpus (the training split); a model that torch.fx can trace layer by layer; memory for
            one Hessian (columns squared, float32) per linear layer of a decoder layer.
    Why:    the reference one-shot pruner with weight reconstruction; what it gains over prune.wanda is the update.
    Known:  the file is dense and as large as before, and no runtime here is faster for the zeros. Published numbers are
            calibrated on 128 blocks of 2048 tokens of C4. H^-1 is that of the columns not yet visited, as in the
            authors' code. Rows of one block share a budget, so rows differ in sparsity. Weights on inputs that are
            always zero become zero. The model runs in its stored type, the update in float32. When a Hessian cannot be
            inverted the library falls back to magnitudes; the stage fails instead: use more tokens or damping. `n:m`
            counts zeros, and m must divide 128.
    Source: SparseGPT, arXiv 2301.00774, algorithm 1; `SparseGPTModifier` of llm-compressor 0.14.0.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("llmcompressor", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "llm-compressor"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    damping: float = 0.01

    def __post_init__(self) -> None:
        self.require_allowed()
        require_text(self.corpus, tokens=self.tokens, sequence=self.sequence)
        if not 0 < self.damping < 1:
            raise ValueError(f"damping is {self.damping!r}; allowed: a fraction of the mean diagonal, between 0 and 1")
        if self.group and BLOCK % self.group[1]:
            raise ValueError(f"pattern is {self.pattern!r}; allowed: groups whose size divides {BLOCK}, such as 2:4")

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        prune_calibrated(source, out, self._modifier, asked=self, context=context)

    def _modifier(self, layers: list[str]) -> Any:
        from llmcompressor.modifiers.pruning import SparseGPTModifier

        return SparseGPTModifier(
            targets=layers, block_size=BLOCK, dampening_frac=self.damping, preserve_sparsity_mask=False, **self.settings
        )
