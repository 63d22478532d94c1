"""What a teacher wrote, as text to learn from: asked for as an artifact, read back as tokens of the student.

A teacher's generations are slow to make and serve many students, so they are built once by `capture.text` and cached.
They are text: a student with another tokenizer encodes them anew. Prompt and response are encoded together, because a
tokenizer may join characters across the border; a token that holds a character of the response belongs to the response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import SourceError, Unsupported
from harness.interfaces import Artifact
from harness.sources.corpus import Split, read_pairs
from harness.spec import Need, Use
from harness.stages.capture.text import ENDED, HELDOUT_ONE_IN
from harness.stages.distill.recipe import teacher_need

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "written"


@dataclass(frozen=True)
class Passage:
    """A prompt and the teacher's response, as tokens; with the end token last when the teacher came to an end."""

    prompt: list[int]
    response: list[int]
    is_ended: bool


def written_need(teacher: Mapping[str, object] | None, **asked: object) -> Need:
    """Gives the need for a teacher's text: the arguments of `capture.text`, applied to the teacher."""
    return teacher_need(teacher, name=NAME, then=(Use.model_validate({"use": "capture.text", "args": asked}),))


def with_heldout(tokens: float) -> int:
    """Gives how many tokens must be written so that those not held out are as many as asked for."""
    return math.ceil(tokens * HELDOUT_ONE_IN / (HELDOUT_ONE_IN - 1))


def read_passages(written: Artifact, split: Split, *, tokenizer: PreTrainedTokenizerBase) -> list[Passage]:
    """Gives the passages in which the student has both a prompt and a response to learn.

    Raises Unsupported for a tokenizer without character offsets, SourceError when no passage is left.
    """
    from harness.stages.hf_folder import separator_token

    if not tokenizer.is_fast:
        raise Unsupported("the student's tokenizer gives no character offsets", remedy="use its fast version")
    end = separator_token(tokenizer)
    found = []
    for pair in read_pairs(written, split):
        encoded = tokenizer(
            pair.prompt + pair.answer, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        tokens = list(encoded["input_ids"])
        border = sum(stop <= len(pair.prompt) for _, stop in encoded["offset_mapping"])
        is_ended = pair.kind == ENDED
        passage = Passage(tokens[:border], [*tokens[border:], *([end] if is_ended else [])], is_ended)
        if passage.prompt and passage.response:
            found.append(passage)
    if not found:
        raise SourceError(f"the teacher wrote no {split} text to learn from", remedy="ask for more or longer responses")
    return found
