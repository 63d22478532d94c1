"""The text on which a pruner watches a model: blocks of the corpus's training split, in an order set by the seed.

Pruners that score parts of a model by their activations read the same kind of text in the same way, so that two of
them that are given the same corpus and seed see the same tokens.

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks


def require_text(corpus: CorpusArgument, *, tokens: int, sequence: int) -> None:
    """Raises ValueError unless the arguments name a corpus and at least one block of it."""
    if sequence < 2 or tokens < sequence:
        raise ValueError(f"tokens is {tokens}, sequence is {sequence}; allowed: tokens >= sequence >= 2")
    corpus_need(corpus)


def calibration_blocks(source: Artifact, *, tokens: int, sequence: int, context: StageContext) -> Blocks:
    """Gives the corpus (N, T) in the model's own tokens: as many blocks of `sequence` as `tokens` are enough for."""
    from harness.stages.hf_folder import load_tokenizer
    from harness.stages.text_blocks import cut_blocks

    return cut_blocks("train", (tokens // sequence, sequence), tokenizer=load_tokenizer(source), context=context)


def read_through(
    model: PreTrainedModel, blocks_NT: Blocks, *, progress: Callable[[float | None, str], None], doing: str
) -> None:
    """Runs every block through the decoder, one at a time and without the head; hooks see the activations."""
    import torch

    with torch.inference_mode():
        for number, block_T in enumerate(blocks_NT):
            progress(number / len(blocks_NT), f"{doing}: {number} of {len(blocks_NT)} blocks")
            model.base_model(torch.from_numpy(block_T)[None].to(model.device), use_cache=False)
