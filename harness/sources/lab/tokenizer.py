"""The one tokenizer of the lab's family: byte-level BPE, digits one by one.

Distillation compares distributions token by token, so teacher and students must cut text alike; the vocabulary is
therefore trained on one fixed sample of every kind of document and never on a model's own training text. Byte level
means that any text can be written. Digits stand alone, so that a number is a row of digits and sums can be learnt. Both
rules together are those of SmolLM, which llama.cpp implements under that name, so the models convert to GGUF.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from harness.sources.lab.sizes import POSITIONS, VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END: Final = "<|endoftext|>"


def train_tokenizer(sample: Iterable[str], *, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Gives a tokenizer of at most `vocabulary` entries: 256 bytes, merges, and the end token.

    The end token separates documents and is beginning and padding as well; `encode` adds none by itself. Deterministic.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
