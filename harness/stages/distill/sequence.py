"""Sequence-level distillation: a student learns the text that its teacher writes, not the teacher's probabilities.

The teacher continues beginnings of documents, once, and what it wrote becomes the training text. Nothing of the teacher
but text is used, so the student may have another tokenizer, and the teacher may be a model whose logits nobody sees.

Shapes: M blocks, T tokens, B blocks a step, N positions of a step that have a label, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.errors import SourceError
from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, refuse, run_notes, teacher_need
from harness.stages.distill.written import NAME, Passage, read_passages, with_heldout, written_need

if TYPE_CHECKING:
    from torch import Tensor

    from harness.sources.corpus import Blocks, Split
    from harness.stages.distill.student import Student

LOSS_ON = ("generated", "all")


@final
@dataclass(frozen=True, kw_only=True)
class DistillSequence(Recipe):
    """Trains the model by cross-entropy on what its teacher wrote (sequence-level knowledge distillation).

    Does:   has the teacher continue the first `prompt_tokens` tokens (its own) of the corpus's training documents by at
            most `max_tokens` tokens at `temperature` (0 takes the likeliest), `generate_tokens` tokens in all, by
            `capture.text`; encodes prompts and continuations with the student's tokenizer, with an end token where the
            teacher came to its end, shuffles and packs them into blocks. Minimizes the cross-entropy of the tokens the
            teacher generated, or of `all`; the mean is over the positions that count. Optimizer, types, adapters and
            grids are those of `distill.logits`; a killed run continues to the same bits.
    Needs:  a teacher (the family's reference, or `teacher`) that can write; any tokenizer on either side.
    Why:    the one distillation that works between model families and from a teacher of which only text is known. The
            text is generated once and serves every student and order.
    Known:  `generate_tokens` defaults to about what `tokens` needs; where it is too little the text is read again in
            another order, and the notes say how often (`passes`). A sample carries one choice of the teacher where
            logits carry all, so this needs more text for the same effect. The paper takes the beam search's best;
            samples at temperature 1 keep the teacher's variety, and 0 comes nearest to the paper. An answer cut at
            `max_tokens` teaches no end. Blocks start anywhere in a text.
    Source: Kim and Rush, arXiv 1606.07947, section 3.2.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "same"
    emulated: ClassVar[bool] = False

    generate_tokens: int | None = None
    prompt_tokens: int = 32
    max_tokens: int = 128
    temperature: float = 1.0
    loss_on: Literal["generated", "all"] = "generated"
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        checks = (
            (
                self.generate_tokens is not None and self.generate_tokens < 1,
                f"generate_tokens {self.generate_tokens}: from 1, or null for what `tokens` needs",
            ),
            (self.prompt_tokens < 1, f"prompt_tokens {self.prompt_tokens}: from 1"),
            (self.max_tokens < 1, f"max_tokens {self.max_tokens}: from 1"),
            (not self.temperature >= 0, f"temperature {self.temperature}: from 0, which takes the likeliest"),
            (self.loss_on not in LOSS_ON, f"loss_on {self.loss_on!r}: {' or '.join(LOSS_ON)}"),
        )
        refuse([*self.problems(), *(message for is_wrong, message in checks if is_wrong)])
        teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        share = self.max_tokens / (self.prompt_tokens + self.max_tokens)
        return (
            written_need(
                self.teacher,
                tokens=self.generate_tokens or with_heldout(self.tokens * share),
                length=self.max_tokens,
                temperature=self.temperature,
                corpus=self.corpus,
                prompt_tokens=self.prompt_tokens,
            ),
        )

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:

        from harness.stages.distill.student import load_student
        from harness.stages.hf_folder import reproducible
        from harness.training.loop import train

        text = self._read("train", self.steps * self.batch, source, context)
        heldout = self._read("heldout", self.heldout_tokens // self.sequence, source, context)
        with reproducible(context):
            student = load_student(self, source, context=context)
            before = _heldout(student, heldout, "before")
            losses = train(student.model, self._backward(student, text), pace=self.pace, context=context)
            after = _heldout(student, heldout, "after")
            student.save(out, context=context)
        context.report.tokens += text.tokens_MT.size
        context.report.notes |= {
            **run_notes(self, losses),
            "passes": text.passes,
            "labels": int(text.is_label_MT.sum()),
            **before,
            **after,
        }

    def _read(self, split: Split, count: int, source: Artifact, context: StageContext) -> _Text:
        """Gives `count` blocks of one split; of the held-out one as many as there are, if they are fewer."""
        from harness.stages.hf_folder import load_tokenizer, separator_token

        tokenizer = load_tokenizer(source)
        passages = read_passages(context.artifacts[NAME], split, tokenizer=tokenizer)
        end = separator_token(tokenizer)
        pieces = [_labelled(passage, end=end, is_all=self.loss_on == "all") for passage in passages]
        if split == "heldout":
            count = min(count, sum(len(piece) for piece in pieces) // self.sequence)
        return _pack(pieces, shape=(count, self.sequence), seed=context.seed)

    def _backward(self, student: Student, text: _Text) -> Callable[[int], float]:
        import torch

        from harness.stages.distill.losses import cross_entropy, piecewise_gradient
        from harness.stages.distill.student import POSITIONS_AT_A_TIME

        def backward(step: int) -> float:
            rows = slice(step * self.batch, (step + 1) * self.batch)
            student_NV, labels_N = text.logits(student, rows)
            value, gradient_NV = piecewise_gradient(
                student_NV,
                lambda piece, piece_NV: cross_entropy(piece_NV, labels_N[piece]),
                positions=POSITIONS_AT_A_TIME,
                count=max(len(labels_N), 1),
            )
            torch.autograd.backward(student_NV, gradient_NV)
            return float(value)

        return backward


Labelled = Sequence[tuple[int, bool]]
"""Tokens, and whether each is to be learnt."""


def _labelled(passage: Passage, *, end: int, is_all: bool) -> Labelled:
    learnt = [(token, True) for token in passage.response]
    # A text that was cut is followed by an end too, for the blocks' sake, but nobody is taught that it ended there.
    return [*((token, is_all) for token in passage.prompt), *learnt, *([] if passage.is_ended else [(end, False)])]


@dataclass(frozen=True)
class _Text:
    """Blocks (M, T), which of their tokens are labels, and how often the text was read for them."""

    tokens_MT: Blocks
    is_label_MT: Blocks
    passes: int

    def logits(self, student: Student, rows: slice) -> tuple[Tensor, Tensor]:
        """Gives the student's logits (N, V) at the positions of some blocks that have a label, and the labels (N,)."""
        import torch

        from harness.stages.distill.losses import NO_LABEL
        from harness.stages.distill.student import next_tokens

        tokens_BT = torch.from_numpy(self.tokens_MT[rows])
        is_label_BT = torch.from_numpy(self.is_label_MT[rows]).bool()
        labels = next_tokens(torch.where(is_label_BT, tokens_BT, NO_LABEL))
        has_label = labels != NO_LABEL
        on = student.model.device
        return student.logits(tokens_BT.to(on))[has_label.to(on)], labels[has_label].to(on)


def _pack(pieces: Sequence[Labelled], *, shape: tuple[int, int], seed: int) -> _Text:
    """Gives blocks of a shape (M, T) from pieces shuffled anew for every pass over them."""
    import numpy as np

    count, length = shape
    order, shuffler = list(range(len(pieces))), random.Random(seed)
    found: list[tuple[int, bool]] = []
    passes = 0
    while len(found) < count * length:
        passes += 1
        shuffler.shuffle(order)
        before = len(found)
        for index in order:
            found.extend(pieces[index])
            if len(found) >= count * length:
                break
        if len(found) == before:
            raise SourceError("the teacher wrote nothing to learn from", remedy="ask for more or longer responses")
    packed = np.asarray(found[: count * length], dtype=np.int64).reshape(count, length, 2)
    return _Text(packed[..., 0].copy(), packed[..., 1].copy(), passes)


def _heldout(student: Student, text: _Text, when: str) -> dict[str, float]:
    """Gives the note on the mean negative log-likelihood of the held-out labels, in nats a token; none without any."""
    import torch

    from harness.stages.distill.losses import cross_entropy

    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(len(text.tokens_MT)):
            student_NV, labels_N = text.logits(student, slice(row, row + 1))
            total += float(cross_entropy(student_NV, labels_N).double().sum())
            count += len(labels_N)
    return {f"heldout_nll_{when}": total / count} if count else {}
