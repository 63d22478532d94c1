"""Prompts of an exact length that no cache has seen.

A prompt that was measured before may be answered from a prefix cache and say nothing about prefill, so every repetition
draws its own random token ids. The draw depends on the seed and on what the prompt is for, not on what ran before it:
two cells with one seed read the same measured prompts.
"""

from __future__ import annotations

import hashlib

from harness.errors import Unsupported
from harness.interfaces import GenerateRequest, Session
from harness.spec import Value


class Shape(Value):
    """A batch of prompts of one length, each continued by as many tokens."""

    prompt_tokens: int
    decode_tokens: int
    batch: int

    @property
    def prefill_label(self) -> str:
        return f"{self.prompt_tokens}x{self.batch}"

    @property
    def label(self) -> str:
        return f"{self.prompt_tokens}+{self.decode_tokens}x{self.batch}"


def check_fits(session: Session, shape: Shape) -> None:
    """Raises Unsupported when the context is too short for the shape."""
    if shape.prompt_tokens + shape.decode_tokens > session.max_length:
        raise Unsupported(
            f"{shape.prompt_tokens} and {shape.decode_tokens} new tokens exceed the context of {session.max_length}",
            remedy="ask for fewer tokens",
        )


def unseen(session: Session, shape: Shape, *, seed: int, purpose: str) -> list[GenerateRequest]:
    """Gives greedy requests with random prompts; another `purpose` gives other prompts."""
    import numpy as np

    words = f"{seed} {purpose} {shape.label}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big"))
    special = {session.prefix_token, *session.end_tokens}
    ordinary = np.asarray([token for token in range(session.vocabulary_size) if token not in special])
    prompts = rng.choice(ordinary, size=(shape.batch, shape.prompt_tokens)).tolist()
    return [GenerateRequest(prompt, shape.decode_tokens, ignore_eos=True) for prompt in prompts]
