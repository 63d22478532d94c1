"""The two halves of contrastive distillation: gradients on teacher's and student's responses, each with its skew.

A response's skew follows a curriculum: in the warm-up it is the highest, and how far apart the two models are on each
half is averaged; from then on a response on which they are closer than that average gets less.

Shapes: N positions of a batch that predict a response's token, n those of one response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.interfaces import StageContext
from harness.stages.distill.distillm2 import LOWEST_SKEW
from harness.stages.distill.losses import Divergence, cross_entropy, log_probabilities, piecewise_gradient
from harness.stages.distill.responses import Drafts, Responses, Tally
from harness.stages.distill.student import POSITIONS_AT_A_TIME, Reader, Student
from harness.stages.distill.written import Passage
from harness.training.sampling import Sampling, sample

Author = Literal["teacher", "student"]
# Of the reference implementation: keeps the quotient finite where teacher and student agree.
GAP_OFFSET = 1e-5
SAMPLES_AT_A_TIME = 16


def curriculum_skew(gap: float, *, mean_gap: float, highest: float) -> float:
    """Gives clip(1 - (1 - highest) * mean_gap / (gap + 1e-5), .01, highest)."""
    return min(max(1 - (1 - highest) * mean_gap / (gap + GAP_OFFSET), LOWEST_SKEW), highest)


class Memory(torch.nn.Module):
    """What a run must remember across a kill: the student's responses, and totals."""

    def __init__(self, drafts: int, length: int) -> None:
        super().__init__()
        self.drafts = Drafts(drafts, length)
        self.tally = Tally(
            "tokens_generated", "tokens_read", "gap_teacher", "gap_student", "responses_teacher", "responses_student"
        )


@dataclass(frozen=True)
class Contrast:
    """Teacher, student and what is remembered; the skew is `highest` for `warm_up` steps, or for good when None."""

    student: Student
    teacher: Reader
    memory: Memory
    highest: float
    warm_up: int | None

    def write(self, passages: Sequence[Passage], *, how: Sampling, context: StageContext) -> None:
        """Has the student answer the passages' prompts and remembers its responses by their place."""
        for start in range(0, len(passages), SAMPLES_AT_A_TIME):
            context.progress(None, f"the student answers prompt {start + 1} of {len(passages)}")
            prompts = [passage.prompt for passage in passages[start : start + SAMPLES_AT_A_TIME]]
            for place, tokens in enumerate(sample(self.student.model, prompts, how=how), start=start):
                self.memory.drafts.write(place, tokens)
                self.memory.tally.add(tokens_generated=len(tokens))

    def learn(self, batch: Responses, *, author: Author, weight: float, step: int) -> float:
        """Adds the gradient of weight * the mean divergence of the responses and gives that; each counts alike."""
        self.memory.tally.add(tokens_read=batch.tokens)
        with torch.no_grad():
            teacher_NV = batch.logits(self.teacher)
        student_NV = batch.logits(self.student)
        labels_N = batch.targets.to(student_NV.device)
        gradient_NV = torch.empty_like(student_NV)
        share = weight / len(batch.tokens_BT)
        total = 0.0
        for rows in batch.rows():
            skew = self._skew((teacher_NV[rows], student_NV[rows], labels_N[rows]), author=author, step=step)
            value, slope_nV = _skewed(teacher_NV[rows], student_NV[rows], author=author, skew=skew)
            gradient_NV[rows] = slope_nV * share
            total += value * share
        torch.autograd.backward(student_NV, gradient_NV)
        return total

    def _skew(self, scored: tuple[Tensor, Tensor, Tensor], *, author: Author, step: int) -> float:
        """Gives the skew of one response from the logits (n, V) of teacher and student and its tokens (n,)."""
        if self.warm_up is None:
            return self.highest
        teacher_nV, student_nV, tokens_n = scored
        gap = likelihood(teacher_nV, tokens_n) - likelihood(student_nV, tokens_n)
        gap = gap if author == "teacher" else -gap
        names, tally = (f"gap_{author}", f"responses_{author}"), self.memory.tally
        if step < self.warm_up:
            tally.add(**dict(zip(names, (gap, 1.0), strict=True)))
            return self.highest
        total, count = map(tally.total, names)
        return curriculum_skew(gap, mean_gap=total / count, highest=self.highest)


def likelihood(logits_nV: Tensor, tokens_n: Tensor) -> float:
    """Gives e^(mean log-probability) of a response's tokens, between 0 and 1."""
    pieces = zip(logits_nV.detach().split(POSITIONS_AT_A_TIME), tokens_n.split(POSITIONS_AT_A_TIME), strict=True)
    return float(torch.cat([cross_entropy(piece_nV, piece_n) for piece_nV, piece_n in pieces]).mean().neg().exp())


def _skewed(teacher_nV: Tensor, student_nV: Tensor, *, author: Author, skew: float) -> tuple[float, Tensor]:
    """Gives one response's mean divergence and its gradient (n, V): forward on the teacher's, reverse on its own."""
    divergence = Divergence("skewed_kl" if author == "teacher" else "skewed_reverse_kl", skew=skew)

    def loss(rows: slice, piece_nV: Tensor) -> Tensor:
        return divergence(log_probabilities(teacher_nV[rows]), log_probabilities(piece_nV))

    value, gradient_nV = piecewise_gradient(student_nV, loss, positions=POSITIONS_AT_A_TIME)
    return float(value), gradient_nV
