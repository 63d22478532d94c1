"""The sizes a lab model can have: a teacher, two students, and a pair that trains while a test waits.

All are Llamas over one vocabulary, with embeddings that serve as the output matrix too, heads 64 wide and grouped keys.
Every matrix has rows of a multiple of 256 weights, because llama.cpp's k-quants pack weights in blocks of 256 along a
row and would silently take another type for anything else. Context is 512 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

VOCABULARY: Final = 2048
POSITIONS: Final = 512
HEAD_WIDTH: Final = 64
# The usual 10,000 spreads a head over distances far beyond 512 tokens. With 100 heads tell neighbours apart from the
# start, and copying is learnt sooner.
ROPE_THETA: Final = 100.0


@dataclass(frozen=True)
class Size:
    """A shape, and how it is trained unless the user says otherwise.

    `hidden` is a multiple of 64 and gives the number of query heads; `key_heads` of keys and values divide it.
    `tokens` are read once, `batch` blocks a step, at a peak `learning_rate`.
    """

    layers: int
    hidden: int
    intermediate: int
    key_heads: int
    tokens: int
    learning_rate: float
    batch: int

    @property
    def heads(self) -> int:
        """Gives the number of query heads."""
        return self.hidden // HEAD_WIDTH

    def config(self, *, end_token: int) -> dict[str, Any]:
        """Gives the arguments of a `LlamaConfig`; the end token is beginning and padding as well."""
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": HEAD_WIDTH,
            "max_position_embeddings": POSITIONS,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "bos_token_id": end_token,
            "eos_token_id": end_token,
            "pad_token_id": end_token,
        }


SIZES: Final[Mapping[str, Size]] = {
    "teacher": Size(
        layers=5, hidden=512, intermediate=1024, key_heads=2, tokens=3_600_000, learning_rate=5e-3, batch=8
    ),
    "student-3m": Size(
        layers=4, hidden=256, intermediate=512, key_heads=2, tokens=2_000_000, learning_rate=7e-3, batch=4
    ),
    "student-1m": Size(
        layers=2, hidden=256, intermediate=256, key_heads=2, tokens=2_000_000, learning_rate=1e-2, batch=4
    ),
    "smoke-teacher": Size(
        layers=3, hidden=256, intermediate=256, key_heads=2, tokens=300_000, learning_rate=1e-2, batch=4
    ),
    "smoke-student": Size(
        layers=1, hidden=256, intermediate=256, key_heads=2, tokens=100_000, learning_rate=1e-2, batch=4
    ),
}
