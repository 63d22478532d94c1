"""Text drawn from a model, also from one that is being trained: many prompts at once, reproducible.

What is drawn follows the model's own distribution at a temperature and nothing else. Models come with generation
settings of their own (penalties, top-k, a temperature) that would bend it, so they are set aside while drawing. Random
numbers come from torch's global generator, whose state is in every training checkpoint.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from harness.errors import ModelError, SpecError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: at most `max_tokens`, at `temperature` (0 takes the likeliest), up to one of `end_tokens`."""

    max_tokens: int
    temperature: float
    end_tokens: Collection[int]


def sample(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, how: Sampling) -> list[list[int]]:
    """Gives one continuation for each prompt, with its end token if it came to one.

    Leaves the model as it was: its mode (training or not) and its generation settings. Weights that are computed when
    they are used, such as those on a quantization grid, are computed once. Raises SpecError when prompt and
    continuation do not fit into the model and ModelError when its logits are no numbers.
    """
    assert prompts, "nothing to continue"
    assert all(prompts), "a prompt has no token"
    width = max(map(len, prompts))
    require_room(model, width + how.max_tokens)
    filler = min(how.end_tokens, default=0)
    tokens_BT = torch.full((len(prompts), width), filler, dtype=torch.long)
    seen_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        seen_BT[row, width - len(prompt) :] = 1
    with torch.no_grad(), parametrize.cached(), _drawing(model, _settings(how, filler=filler)) as generate:
        drawn_BT = generate(
            tokens_BT.to(model.device), attention_mask=seen_BT.to(model.device), logits_processor=[_require_finite]
        )
    return [_up_to_end(row, how.end_tokens) for row in drawn_BT[:, width:].tolist()]


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Gives the tokens at which the model's own settings stop generation; none when they name none."""
    configured = cast("Any", model.generation_config).eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)


def require_room(model: PreTrainedModel, tokens: int) -> None:
    """Raises SpecError when a text of that many tokens is longer than the model can attend to."""
    most = model.config.get_text_config(decoder=True).to_dict().get("max_position_embeddings")
    if most is not None and tokens > most:
        raise SpecError(
            "prompt and continuation do not fit into the model",
            found=tokens,
            allowed=f"up to {most} tokens together",
            remedy="ask for a shorter prompt or continuation",
        )


def _settings(how: Sampling, *, filler: int) -> GenerationConfig:
    from transformers import GenerationConfig

    choice = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
    make: Any = GenerationConfig
    return cast(
        "GenerationConfig",
        make(
            max_new_tokens=how.max_tokens,
            eos_token_id=sorted(how.end_tokens) or None,
            pad_token_id=filler,
            **(choice if how.temperature > 0 else {"do_sample": False}),
        ),
    )


@contextmanager
def _drawing(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[Any]:
    """Gives the function that generates with these settings alone, in evaluation mode, and puts everything back."""
    from transformers import PreTrainedModel as Generating

    # Adapters wrap the model that generates and keep its settings too; the model inside has the adapters' layers.
    whole = cast("torch.nn.Module", model)
    drawn: Any = next(module for module in whole.modules() if isinstance(module, Generating))
    own, was_training = drawn.generation_config, whole.training
    # Settings handed to `generate` are filled up from the model's own, so these are replaced.
    drawn.generation_config = settings
    whole.eval()
    try:
        yield drawn.generate
    finally:
        drawn.generation_config = own
        whole.train(was_training)


def _require_finite(_: Tensor, logits_BV: Tensor) -> Tensor:
    # A logarithm of the sum of zero probabilities, of infinities and of NaN is never finite.
    if not bool(torch.isfinite(logits_BV.logsumexp(dim=-1)).all()):
        raise ModelError("the model's logits are no numbers, so no token can be drawn")
    return logits_BV


def _up_to_end(tokens: list[int], end_tokens: Collection[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in end_tokens:
            return tokens[: index + 1]
    return tokens
