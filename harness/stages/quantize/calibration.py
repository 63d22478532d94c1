"""The text on which a quantizer watches a model: blocks of a corpus, or text that the model draws itself.

Data-free calibration takes the model's own distribution for the text it will see: every document starts with one token
drawn evenly from the vocabulary and goes on as the model would, at temperature 1, up to its end token; the documents
are joined, with the separator of a corpus before each, and cut into blocks. Source: LLM-QAT, arXiv 2305.17888, section
3.1 (there the first few tokens are the likeliest ones; here all are drawn).

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.interfaces import Artifact, StageContext
from harness.stages.quantize.recipe import QuantizationRecipe

if TYPE_CHECKING:
    from pydantic import JsonValue
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

PROMPTS_AT_ONCE = 16


def blocks_to_watch(
    recipe: QuantizationRecipe, source: Artifact, model: PreTrainedModel, *, context: StageContext
) -> Blocks | None:
    """Gives the blocks (N, T) and notes where they come from; None for a quantizer that watches nothing."""
    from harness.stages.hf_folder import load_tokenizer, separator_token
    from harness.stages.text_blocks import cut_blocks

    if not recipe.calibrates:
        return None
    shape = recipe.tokens // recipe.sequence, recipe.sequence
    tokenizer = load_tokenizer(source)
    if recipe.data_free:
        blocks_NT = draw_blocks(model, shape, separator=separator_token(tokenizer), context=context)
    else:
        blocks_NT = cut_blocks("train", shape, tokenizer=tokenizer, context=context)
    told: dict[str, JsonValue] = {"blocks": shape[0], "sequence": shape[1], "seed": context.seed}
    context.report.notes["calibration"] = {"text": "its own" if recipe.data_free else "corpus", **told}
    context.report.tokens += blocks_NT.size
    return blocks_NT


def draw_blocks(model: PreTrainedModel, shape: tuple[int, int], *, separator: int, context: StageContext) -> Blocks:
    """Gives blocks (N, T) that the model draws by itself, the token `separator` before every document.

    The same for the same seed. A separator is what a runtime starts a text with, and where models have their largest
    activations, so a quantizer that never saw one would cut them off.

    Raises SpecError when a block is longer than the model can attend to.
    """
    import numpy as np
    import torch

    from harness.stages.hf_folder import reproducible
    from harness.training.sampling import Sampling, end_tokens, sample

    count, length = shape
    how = Sampling(max_tokens=max(1, length - 2), temperature=1.0, end_tokens=end_tokens(model))
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    drawn: list[int] = []
    with reproducible(context):
        while len(drawn) < count * length:
            context.progress(len(drawn) / (count * length), "draw calibration text")
            firsts = torch.randint(vocabulary, (min(PROMPTS_AT_ONCE, count),)).tolist()
            for first, rest in zip(firsts, sample(model, [[separator, one] for one in firsts], how=how), strict=True):
                drawn += [separator, first, *rest]
    return np.asarray(drawn[: count * length], dtype=np.int64).reshape(count, length)
