"""Calibrated pruning through llm-compressor's one-shot driver (see `harness.stages.one_shot`).

The weights are taken from memory: the library's own checkpoint format and files are not used. What it would only log is
an error here: a Hessian that cannot be inverted, after which SparseGPT falls back to magnitudes without saying so in
its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import ModelError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need
from harness.stages.one_shot import Warned, require_device, run_one_shot, watching
from harness.stages.prune._sparsity import Sparsity, prunable_weights
from harness.stages.prune._zeroing import Tally, write_pruned
from harness.stages.prune.calibration import calibration_blocks

if TYPE_CHECKING:
    from torch import Tensor

# The one module of the library whose warnings mean that the result is not what was asked for.
FALLS_BACK_QUIETLY = "llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify"
PASSES = 2  # over every block: one to see what arrives, one to feed the next layer


@dataclass(frozen=True, kw_only=True)
class Calibrated(Sparsity):
    """Arguments of the pruning stages that look at inputs: `tokens` of the corpus in blocks of `sequence`."""

    corpus: CorpusArgument = "docstrings:default"
    tokens: int = 16384
    sequence: int = 512

    @property
    def needs(self) -> tuple[Need, ...]:
        """The calibration text."""
        return (corpus_need(self.corpus),)

    @property
    def settings(self) -> dict[str, Any]:
        """Gives the pattern as llm-compressor's modifiers call it."""
        return {"sparsity": self.sparsity, "mask_structure": self.pattern if self.group else "0:0", "ignore": []}


Modifier = Callable[[list[str]], Any]
"""Makes llm-compressor's modifier for the layers with these names."""


def prune_calibrated(
    source: Artifact, out: Path, modifier: Modifier, *, asked: Calibrated, context: StageContext
) -> None:
    """Prunes the model in `source` with one of llm-compressor's modifiers into the empty folder `out`, and reports."""
    from harness.stages.hf_folder import load_model, load_tokenizer, stored_dtype, using_threads

    names = prunable_weights(source, asked)
    require_device(context.hardware.device)
    with using_threads(context.hardware):
        tokenizer = load_tokenizer(source)
        blocks_NT = calibration_blocks(source, tokens=asked.tokens, sequence=asked.sequence, context=context)
        model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
        layers = [name.removesuffix(".weight") for name in names]
        with watching(model, layers, calls=PASSES * len(layers) * len(blocks_NT), context=context):
            warned = run_one_shot(model, modifier(layers), tokenizer=tokenizer, blocks_NT=blocks_NT)
        _require_no_fallback(warned)

        def zero(name: str, _: Tensor) -> Tensor:
            layer: Any = model.get_submodule(name.removesuffix(".weight"))
            return cast("Tensor", layer.weight.detach())

        write_pruned(source, out, zero, tally=Tally(asked, set(names)), context=context)
    context.report.tokens += blocks_NT.size


def _require_no_fallback(warned: Sequence[Warned]) -> None:
    """Raises ModelError when the library says that it pruned by magnitude instead."""
    failed = [one.message for one in warned if one.module == FALLS_BACK_QUIETLY]
    if failed:
        raise ModelError(
            f"llm-compressor pruned {len(failed)} weights by magnitude instead, because their Hessians could not be "
            f"inverted: {failed[0]}"
        )
