"""What every stage that trains on text is told: how much, from what, how fast.

A recipe is the arguments that all distillers share; each distiller adds its own and says what its loss is. How the
student is loaded and saved is in `student`.

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.interfaces import StageContext
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import REFERENCE, Need, Use
from harness.training.pace import OPTIMIZERS, Pace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks

HANDLINGS = ("straight_through", "frozen")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Arguments of every stage that trains: `tokens` of `corpus` once over, `batch` blocks of `sequence` a step.

    `learning_rate` is the peak after `warmup` (a fraction of the steps), then a cosine to zero. `autocast` computes in
    bfloat16. `optimizer` is adamw, or muon for a student that learns from nothing. `lora` trains adapters of that rank
    instead of the weights and merges them. `quantized` says what happens to weights that an earlier stage put on a
    grid: `straight_through` trains them through the rounding, `frozen` leaves them as they are and trains the rest.
    """

    tokens: int
    corpus: CorpusArgument = "docstrings:default"
    learning_rate: float = 2e-4
    batch: int = 4
    sequence: int = 256
    warmup: float = 0.1
    autocast: bool = True
    heldout_tokens: int = 2048
    checkpoint_every: int | None = 100
    optimizer: str = "adamw"
    lora: int | None = None
    quantized: Literal["straight_through", "frozen"] = "straight_through"

    @property
    def steps(self) -> int:
        """Gives how many optimizer steps the tokens are enough for."""
        return self.tokens // (self.batch * self.sequence)

    @property
    def pace(self) -> Pace:
        """Gives the pace of a run over blocks of the corpus."""
        return Pace(
            steps=self.steps,
            tokens=self.batch * self.sequence,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            checkpoint_every=self.checkpoint_every,
            optimizer=self.optimizer,
        )

    def problems(self) -> list[str]:
        """Gives what is wrong with the shared arguments, one sentence each."""
        checks = (
            (self.sequence < 2 or self.batch < 1, f"batch {self.batch}, sequence {self.sequence}: from 1 and from 2"),
            (self.tokens < self.batch * self.sequence, f"tokens {self.tokens}: at least batch * sequence"),
            (not self.learning_rate > 0, f"learning_rate {self.learning_rate}: more than 0"),
            (not 0 <= self.warmup < 1, f"warmup {self.warmup}: a fraction of the steps, from 0 and under 1"),
            (self.heldout_tokens < 0, f"heldout_tokens {self.heldout_tokens}: from 0 (measure nothing)"),
            (self.checkpoint_every is not None and self.checkpoint_every < 1, "checkpoint_every: from 1, or null"),
            (self.optimizer not in OPTIMIZERS, f"optimizer {self.optimizer!r}: {' or '.join(OPTIMIZERS)}"),
            (self.lora is not None and self.lora < 1, f"lora {self.lora}: a rank from 1, or null for all weights"),
            (self.quantized not in HANDLINGS, f"quantized {self.quantized!r}: {' or '.join(HANDLINGS)}"),
        )
        corpus_need(self.corpus)
        return [message for is_wrong, message in checks if is_wrong]


def teacher_need(teacher: Mapping[str, object] | None, *, name: str = "teacher", then: Sequence[Use] = ()) -> Need:
    """Gives the need for a teacher: the family's reference, or the model a mapping describes.

    The mapping has `source` and, if need be, `revision`, `args` and `stages` (`{"source": "lab:teacher"}`); `then` are
    stages applied to it. Raises ValueError for anything else.
    """
    if teacher is None:
        return Need(name=name, source=REFERENCE, stages=tuple(then))
    if not isinstance(teacher, Mapping) or not {"source", "stages"} & set(teacher):
        raise ValueError(
            f"{name} is {teacher!r}; allowed: null (the reference), or an object such as {{source: hub:org/name}}"
        )
    need = Need.model_validate({**teacher, "name": name})
    return need.model_copy(update={"stages": (*need.stages, *then)})


def refuse(problems: list[str]) -> None:
    """Raises ValueError naming every problem, if there is one."""
    if problems:
        raise ValueError("; ".join(problems))


def lesson_blocks(
    recipe: Recipe, *, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> tuple[Blocks, Blocks]:
    """Gives the blocks to train on, in the order in which they are read, and the blocks to measure on."""
    from harness.stages.text_blocks import cut_blocks

    train, heldout = recipe.steps * recipe.batch, recipe.heldout_tokens // recipe.sequence
    return (
        cut_blocks("train", (train, recipe.sequence), tokenizer=tokenizer, context=context),
        cut_blocks("heldout", (heldout, recipe.sequence), tokenizer=tokenizer, context=context),
    )


def run_notes(recipe: Recipe, losses: Sequence[float]) -> dict[str, float]:
    """Gives what every run writes down: its steps, the first loss and the last."""
    return {"steps": recipe.steps, "loss_first": losses[0], "loss_last": losses[-1]}


def divergence_problems(kind: str, beta: float, skew: float, *, temperature: float) -> list[str]:
    """Gives what is wrong with the arguments of a divergence between logits, one sentence each."""
    checks = (
        (not temperature > 0, f"temperature {temperature}: more than 0"),
        (kind not in DIVERGENCES, f"divergence {kind!r}: one of {', '.join(DIVERGENCES)}"),
        (not 0 <= beta <= 1, f"beta {beta}: from 0 (forward KL) to 1 (reverse KL)"),
        (not 0 < skew < 1, f"skew {skew}: strictly between 0 and 1"),
    )
    return [message for is_wrong, message in checks if is_wrong]
