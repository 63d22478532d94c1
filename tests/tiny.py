"""Tiny random Llama directories for tests: a real checkpoint with a real tokenizer, in a fraction of a second.

The weights are drawn wide enough that greedy continuations vary and log-probabilities differ, so that a wrong mask or
a wrong position shows. The tokenizer is a byte-level BPE with a BOS, an EOS and a chat template; it adds no token by
itself.
"""

from __future__ import annotations

from pathlib import Path

from harness.conformance.llama import BOS, CHAT_TEMPLATE, EOS, TEXT, TURN, Shape, write_llama
from harness.conformance.llama import make_tokenizer as tiny_tokenizer

__all__ = ["BOS", "CHAT_TEMPLATE", "EOS", "TEXT", "TURN", "tiny_llama", "tiny_tokenizer"]


def tiny_llama(
    out: Path, *, layers: int = 2, hidden: int = 64, vocab: int = 384, seed: int = 0, tie: bool = True
) -> Path:
    """Saves a random float32 Llama with its tokenizer into the folder `out` and gives `out`.

    Heads are 16 wide, two query heads share a key head, the MLP is four times as wide as `hidden`, 512 positions.
    """
    shape = Shape(hidden, 4 * hidden, heads=hidden // 16, layers=layers, vocabulary=vocab, tied=tie)
    return write_llama(out, shape, seed=seed)
