"""Tiny random Llama directories for tests: a real checkpoint with a real tokenizer, in a fraction of a second.

The weights are drawn wide enough that greedy continuations vary and log-probabilities differ, so that a wrong mask or
a wrong position shows. The tokenizer is a byte-level BPE with a BOS, an EOS and a chat template; it adds no token by
itself.
"""

from __future__ import annotations

from pathlib import Path

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


def tiny_llama(
    out: Path, *, layers: int = 2, hidden: int = 64, vocab: int = 384, seed: int = 0, tie: bool = True
) -> Path:
    """Saves a random float32 Llama with its tokenizer into the folder `out` and gives `out`.

    Heads are 16 wide, two query heads share a key head, the MLP is four times as wide as `hidden`, 512 positions.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(vocab)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=tie,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def tiny_tokenizer(vocab: int = 384):
    """Gives a byte-level BPE tokenizer with `vocab` entries (three of them special), trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    assert backend.get_vocab_size() == vocab, f"the training text gives {backend.get_vocab_size()} entries, not {vocab}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, additional_special_tokens=[TURN], model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
