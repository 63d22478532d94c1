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
from harness.sources.corpus import CorpusArgument, Split, corpus_need
from harness.spec import REFERENCE, Need, Use
from harness.training.pace import OPTIMIZERS, Pace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks

HANDLINGS = ("straight_through", "frozen")


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


def training_blocks(
    recipe: Recipe, split: Split, count: int, *, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> Blocks:
    """Gives `count` blocks of the recipe's length in the order in which they are read."""
    return cut_blocks(split, (count, recipe.sequence), tokenizer=tokenizer, context=context)


def cut_blocks(
    split: Split, shape: tuple[int, int], *, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> Blocks:
    """Gives blocks (N, T) of the need named `corpus`; the context's seed shuffles its documents."""
    from harness.sources.corpus import pack_blocks, read_documents
    from harness.stages.hf_folder import encoder, separator_token

    return pack_blocks(
        read_documents(context.artifacts["corpus"], split),
        encode=encoder(tokenizer),
        shape=shape,
        separator=separator_token(tokenizer),
        seed=context.seed,
    )
