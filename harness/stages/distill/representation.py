"""Training a student on what goes on inside its teacher: the part that distillers of representations share.

Both models read the same tokens and show their features; a comparison turns the two into named parts of the loss, which
are added up by their weights, beside the divergence of logits and the cross-entropy of the text. What a comparison
needs for itself (a projection between two widths) is trained along, is in the checkpoint and is thrown away at the end.

Shapes: N blocks, B blocks of a step, T tokens, V vocabulary, n = B * T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.features import Asked, Features, Observer, observe
from harness.stages.distill.heldout import heldout_kl
from harness.stages.distill.losses import cross_entropy, forward_kl, piecewise_gradient
from harness.stages.distill.recipe import Recipe, lesson_blocks, run_notes
from harness.stages.distill.student import (
    POSITIONS_AT_A_TIME,
    Reader,
    Student,
    load_student,
    load_teacher,
    next_tokens,
    require_same_width,
    shared_tokenizer,
)
from harness.stages.hf_folder import reproducible
from harness.training.loop import Backward, train

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks

Parts = Callable[[Features, Features], Mapping[str, Tensor]]
"""Gives the parts of the loss by name, from what the teacher and then the student shows."""


@dataclass(frozen=True)
class Comparison:
    """How two models are compared.

    `parts` gives one number for every name in `weights` whose weight is not 0. `extra` is trained along with the
    student. `of_teacher` and `of_student` say what is read from either.
    """

    weights: Mapping[str, float]
    kd_weight: float
    ce_weight: float
    parts: Parts
    extra: torch.nn.Module
    of_teacher: Asked
    of_student: Asked


@dataclass(frozen=True)
class Watched:
    """Teacher and student, looked into, and how they are compared."""

    teacher: Observer
    student: Observer
    comparison: Comparison

    def show(self, blocks_NT: Blocks, start: int, end: int) -> tuple[Tensor, Features, Features]:
        """Gives the tokens (B, T) of some blocks and what the teacher and the student show of them."""
        tokens_BT = torch.from_numpy(blocks_NT[start:end]).to(self.student.reader.model.device)
        with torch.no_grad():
            taught = self.teacher.features(tokens_BT)
        return tokens_BT, taught, self.student.features(tokens_BT)

    def backward(self, blocks_NT: Blocks, batch: int) -> Backward:
        """Gives the function that adds the gradient of a step."""
        how = self.comparison

        def backward(step: int) -> float:
            tokens_BT, taught, shown = self.show(blocks_NT, step * batch, (step + 1) * batch)
            parts = how.parts(taught, shown)
            inside = torch.stack([how.weights[name] * part for name, part in parts.items()]).sum()
            if not (how.kd_weight or how.ce_weight):
                torch.autograd.backward(inside)
                return float(inside.detach())
            value, gradient_nV = self._of_logits(taught.logits_NV, shown.logits_NV, next_tokens(tokens_BT))
            torch.autograd.backward([shown.logits_NV, inside], [gradient_nV, torch.ones_like(inside)])
            return float(value + inside.detach())

        return backward

    def _of_logits(self, teacher_nV: Tensor, student_nV: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        how = self.comparison

        def loss(rows: slice, piece_nV: Tensor) -> Tensor:
            loss_n = piece_nV.new_zeros(len(piece_nV))
            if how.kd_weight:
                loss_n = loss_n + how.kd_weight * forward_kl(teacher_nV[rows], piece_nV)
            if how.ce_weight:
                loss_n = loss_n + how.ce_weight * cross_entropy(piece_nV, labels_n[rows])
            return loss_n

        return piecewise_gradient(student_nV, loss, positions=POSITIONS_AT_A_TIME)

    def heldout(self, heldout_NT: Blocks, batch: int, when: str) -> dict[str, float]:
        """Gives notes on held-out text: the KL of logits, and every part averaged over whole batches."""
        notes = heldout_kl(self.student.reader, self.teacher.reader, heldout_NT, when)
        starts = range(0, len(heldout_NT) - batch + 1, batch)
        with torch.no_grad():
            for start in starts:
                _, taught, shown = self.show(heldout_NT, start, start + batch)
                for name, part in self.comparison.parts(taught, shown).items():
                    note = f"heldout_{name}_{when}"
                    notes[note] = notes.get(note, 0.0) + float(part) / len(starts)
        return notes


def distill_by(
    compare: Callable[[Reader, Reader], Comparison],
    recipe: Recipe,
    source: Artifact,
    *,
    out: Path,
    context: StageContext,
) -> None:
    """Trains the model `source` on the need named `teacher` and writes it into `out`.

    `compare` is called once, with teacher and student in memory, before anything is trained.
    """
    tokenizer = shared_tokenizer(source, context.artifacts["teacher"])
    blocks_NT, heldout_NT = lesson_blocks(recipe, tokenizer=tokenizer, context=context)
    with reproducible(context):
        student = load_student(recipe, source, context=context)
        watched = _watch(compare, student, load_teacher(recipe, context.artifacts["teacher"], context=context))
        how = watched.comparison
        if how.kd_weight or len(heldout_NT):
            require_same_width(student, watched.teacher.reader)
        before = watched.heldout(heldout_NT, recipe.batch, "before")
        module = torch.nn.ModuleDict({"student": cast("torch.nn.Module", student.model), "extra": how.extra})
        losses = train(module, watched.backward(blocks_NT, recipe.batch), pace=recipe.pace, context=context)
        after = watched.heldout(heldout_NT, recipe.batch, "after")
        student.save(out, context=context)
    context.report.tokens += blocks_NT.size
    context.report.notes |= {
        **run_notes(recipe, losses),
        **{f"{name}_weight": weight for name, weight in how.weights.items()},
        "kd_weight": how.kd_weight,
        "ce_weight": how.ce_weight,
        **before,
        **after,
    }


def _watch(compare: Callable[[Reader, Reader], Comparison], student: Student, teacher: Reader) -> Watched:
    comparison = compare(teacher, student)
    comparison.extra.to(student.model.device)
    return Watched(observe(teacher, comparison.of_teacher), observe(student, comparison.of_student), comparison)
