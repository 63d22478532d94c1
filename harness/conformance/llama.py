"""Tiny Llama folders made on the spot: a real checkpoint with a real tokenizer, in a fraction of a second.

The tokenizer is a byte-level BPE with a BOS, an EOS and a chat template, trained on a few sentences; it adds no token
by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, TURN = "<|bos|>", "<|eos|>", "<|turn|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXT = """A model that was compressed should still know what it knew before. Distillation trains a small network to
repeat what a large one says; quantization keeps the network and stores every weight in fewer bits. Pruning
takes parts away. Which of them loses least depends on how the answer is measured: the likelihood of a held-
out text, the share of questions answered as before, the number of tasks an agent completes, the time to the
first token, the energy of a thousand tokens. The quick brown fox jumps over the lazy dog while seventeen
wizards quietly examine a jar of black quartz.
def mean(values): return sum(values) / len(values)  # numbers such as 0, 12, 345 and 6789 appear in text as well
"""


@dataclass(frozen=True)
class Shape:
    """How large a Llama is, and how wide its weights are drawn (`spread`, a standard deviation)."""

    hidden: int
    intermediate: int
    heads: int
    layers: int = 2
    vocabulary: int = 384
    positions: int = 512
    tied: bool = False
    spread: float = 0.15


def write_llama(
    out: Path, shape: Shape, *, seed: int = 0, prepare: Callable[[PreTrainedModel], object] | None = None
) -> Path:
    """Saves a random float32 Llama with its tokenizer into the folder `out` and gives `out`.

    Two query heads share a key head. `prepare` may change the model before it is saved, its type too.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(shape.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        max_position_embeddings=shape.positions,
        initializer_range=shape.spread,
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make: Any = LlamaForCausalLM
        model = make(config)
        if prepare is not None:
            prepare(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def make_tokenizer(vocabulary: int = 384) -> PreTrainedTokenizerFast:
    """Gives a tokenizer with `vocabulary` entries, three of them special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    found = backend.get_vocab_size()
    assert found == vocabulary, f"the training text gives {found} entries, not {vocabulary}"
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, additional_special_tokens=[TURN], model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
