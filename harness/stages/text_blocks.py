"""Text as a stage reads it: the need named `corpus` in blocks of a model's own tokens, in an order set by the seed.

Whoever trains, prunes or listens to a teacher reads the same way, so that two stages with the same corpus, tokenizer
and seed see the same tokens.

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.interfaces import StageContext
from harness.sources.corpus import Split, pack_blocks, read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks


def cut_blocks(
    split: Split, shape: tuple[int, int], *, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> Blocks:
    """Gives blocks of `shape` (N, T); the context's seed shuffles the documents.

    Raises SourceError when the corpus has too little text.
    """
    from harness.stages.hf_folder import encoder, separator_token

    return pack_blocks(
        read_documents(context.artifacts["corpus"], split),
        encode=encoder(tokenizer),
        shape=shape,
        separator=separator_token(tokenizer),
        seed=context.seed,
    )
