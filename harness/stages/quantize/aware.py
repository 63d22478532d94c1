"""Training with quantization in mind: the arguments and the run that QAT, LSQ and QAD share.

All of them let a model compute with rounded weights, train what those were rounded from, and pack the result on the
grid that it was trained on. They differ in how weights are rounded and in what is minimized: the cross-entropy of the
text, or the divergence from the model's own answers before it was quantized. Whatever is minimized, that divergence on
held-out text is written down before training, which is the cost of plain rounding, and after it. A model that keeps its
cross-entropy and has moved away from itself is another model (QAD, arXiv 2601.20088, table 1).

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, run_notes
from harness.stages.quantize.recipe import QuantizationRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks
    from harness.stages.quantize.handing import Packing

CALIBRATION_TOKENS = 16384


@dataclass(frozen=True, kw_only=True)
class AwareRecipe(Recipe, QuantizationRecipe, ABC):
    """Arguments of every stage that trains a quantized model: those of training and those of quantizing.

    With `data_free` the text is what the model itself draws before it is quantized, as much as `tokens` says; the
    corpus is then only measured on. All weights are trained: there is no `lora`, and no earlier grid (`quantized`).
    """

    def problems(self) -> list[str]:
        """Gives what is wrong with the shared arguments, one sentence each."""
        checks = (
            (self.lora is not None, f"lora is {self.lora!r}; allowed: null, since all weights are trained"),
            (self.quantized != "straight_through", f"quantized is {self.quantized!r}; allowed: straight_through"),
        )
        found = [message for is_wrong, message in checks if is_wrong]
        return [*found, *Recipe.problems(self), *QuantizationRecipe.problems(self)]

    @property
    def calibrates(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.data_free and not self.heldout_tokens else (corpus_need(self.corpus),)

    @property
    def calibrator(self) -> Self:
        """The same stage with only so much text as calibration takes."""
        most = max(CALIBRATION_TOKENS, self.batch * self.sequence)
        return replace(self, tokens=min(self.tokens, most))


@dataclass(frozen=True)
class Rounding:
    """How a model is made to compute with rounded weights, and to end on their grid.

    `end` leaves plain weights on the grid, and what rounds inputs in its place, and says how they are packed. `stored`
    is the type of the files.
    """

    stored: torch.dtype
    begin: Callable[[PreTrainedModel], None]
    end: Callable[[PreTrainedModel], Packing]


@dataclass(frozen=True)
class Aim:
    """What is minimized: the divergence from `reference`, else (not `follows`) the cross-entropy of the text."""

    reference: Artifact
    follows: bool


def train_rounded(
    recipe: AwareRecipe, source: Artifact, out: Path, *, how: tuple[Rounding, Aim], context: StageContext
) -> None:
    """Trains the model in `source` with rounded weights and packs it into the empty folder `out`, and reports.

    To be called inside `reproducible`. Raises ModelError when training diverges, and what `write_packed` raises.
    """
    import torch

    from harness.stages.distill.heldout import heldout_kl
    from harness.stages.distill.losses import Divergence
    from harness.stages.distill.soft import from_model
    from harness.stages.distill.steps import learning
    from harness.stages.distill.student import Reader, load_teacher, require_same_width, shared_tokenizer
    from harness.stages.hf_folder import load_model
    from harness.stages.quantize.handing import write_trained
    from harness.training.loop import train

    rounding, aim = how
    tokenizer = shared_tokenizer(source, aim.reference)
    student = Reader(load_model(source, dtype=torch.float32, hardware=context.hardware), recipe.autocast)
    blocks_NT, heldout_NT = _lessons(recipe, student.model, tokenizer=tokenizer, context=context)
    teacher = load_teacher(recipe, aim.reference, context=context)
    require_same_width(student, teacher)
    rounding.begin(student.model)
    soft = from_model(teacher, blocks_NT, divergence=Divergence(), temperature=1.0) if aim.follows else None
    weights = (1.0, 0.0) if aim.follows else (0.0, 1.0)
    notes = heldout_kl(student, teacher, heldout_NT, "before")
    backward = learning(student, blocks_NT, soft, batch=recipe.batch, weights=weights)
    losses = train(student.model, backward, pace=recipe.pace, context=context)
    notes |= heldout_kl(student, teacher, heldout_NT, "after")
    packing = rounding.end(student.model)
    del teacher, soft, backward
    _keep_as(student.model, rounding.stored)
    context.report.tokens += blocks_NT.size
    context.report.notes |= {**run_notes(recipe, losses), "loss": "kl" if aim.follows else "ce", **notes}
    write_trained(student.model, out, packing, source=source, context=context)


def _keep_as(model: PreTrainedModel, stored: torch.dtype) -> None:
    """Rounds the weights to the type of the files; buffers, such as rotary frequencies, stay as a loader makes them."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(stored)


def _lessons(
    recipe: AwareRecipe, model: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> tuple[Blocks, Blocks]:
    """Gives the blocks (N, T) to train on and those to measure on."""
    from harness.stages.distill.recipe import lesson_blocks
    from harness.stages.hf_folder import separator_token
    from harness.stages.quantize.calibration import draw_blocks
    from harness.stages.text_blocks import cut_blocks

    if not recipe.data_free:
        return lesson_blocks(recipe, tokenizer=tokenizer, context=context)
    shape = recipe.steps * recipe.batch, recipe.sequence
    drawn_NT = draw_blocks(model, shape, separator=separator_token(tokenizer), context=context)
    count = recipe.heldout_tokens // recipe.sequence
    if not count:
        return drawn_NT, drawn_NT[:0]
    return drawn_NT, cut_blocks("heldout", (count, recipe.sequence), tokenizer=tokenizer, context=context)
