"""Wanda: weights are zeroed by their size times the size of what they are multiplied with.

A language model has a few input channels that are far larger than the rest. A small weight on such a channel matters
more than a large one on a quiet channel, so Wanda scores |w| * ||x|| and compares within each output. The weights that
stay are not changed, which makes it as cheap as a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.prune._llm_compressor import Calibrated, prune_calibrated
from harness.stages.prune.calibration import require_text


@final
@dataclass(frozen=True, kw_only=True)
class PruneWanda(Calibrated):
    """Zeroes the linear weights of the decoder with the lowest |w| times input norm.

    Does:   runs `tokens` tokens of the corpus in blocks of `sequence` through one decoder layer after another, scores
            each weight S_ij = |W_ij| * ||X_j||_2 over all positions, and zeroes the lowest `sparsity` of every row (or
            n in every m columns with `pattern: n:m`) before the next layer is looked at. All others stay as they are.
    Needs:  llm-compressor; a corpus (the training split); a model that torch.fx can trace layer by layer.
    Why:    the strongest pruning rule that changes no weight; the sparse start of prune, distil, quantize.
    Known:  the file is dense and as large as before, and no runtime here is faster for the zeros. Published numbers are
            calibrated on 128 blocks of 2048 tokens of C4. The model runs in its stored type. Within one decoder layer
            all inputs are those of the unpruned layer, as in the authors' code. `n:m` counts zeros.
    Source: Wanda, arXiv 2306.11695, equation 1 and section 3; `WandaPruningModifier` of llm-compressor 0.14.0.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("llmcompressor", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "llm-compressor"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.require_allowed()
        require_text(self.corpus, tokens=self.tokens, sequence=self.sequence)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        prune_calibrated(source, out, self._modifier, asked=self, context=context)

    def _modifier(self, layers: list[str]) -> Any:
        from llmcompressor.modifiers.pruning import WandaPruningModifier

        return WandaPruningModifier(targets=layers, **self.settings)
