"""The student as its own teacher: a copy that may follow it, and how much each sampled token weighs.

The teacher is a copy of the student's weights as parameters that are not trained, so a checkpoint holds it too. It
reads another prompt than the student, a longer one, and the same response; the two are compared at the positions that
predict the response, which have the same number and order in both.

Shapes: N positions that predict a response's token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.stages.distill.losses import log_probabilities, piecewise_gradient
from harness.stages.distill.responses import Responses
from harness.stages.distill.student import POSITIONS_AT_A_TIME, Reader, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SelfTeacher:
    """A copy of a student's model; `rate` is how far it moves towards the student each time."""

    reader: Reader
    student: Student
    rate: float

    @classmethod
    def of(cls, student: Student, *, rate: float) -> SelfTeacher:
        """Gives the student's teacher as the student is now."""
        copied = deepcopy(student.model).requires_grad_(False)
        return cls(Reader(copied, student.autocast), student, rate)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the trained parameters: theirs = (1 - rate) * theirs + rate * the student's."""
        for theirs, trained in zip(_parameters(self.reader.model), _parameters(self.student.model), strict=True):
            if trained.requires_grad:
                theirs.lerp_(trained, self.rate)

    @torch.no_grad()
    def logits(self, batch: Responses) -> Tensor:
        """Gives the teacher's logits (N, V) at the positions that predict a response's token."""
        # The loop puts all that is in its module into training mode, and a teacher drops nothing out.
        self.reader.model.eval()
        return batch.logits(self.reader)


def importance(student_NV: Tensor, drawn_N: Tensor, *, temperature: float, clip: float | None) -> Tensor:
    """Gives min(clip, p(y) / q(y)) (N,) for drawn tokens y, without a gradient; 1 without a clip.

    p is the student at temperature 1, which is trained, and q the same student at the temperature at which it drew.
    """
    if clip is None:
        return torch.ones(len(drawn_N), device=student_NV.device)
    detached_NV = student_NV.detach()
    ours_N = chosen(log_probabilities(detached_NV), drawn_N)
    drawn_from_N = chosen(log_probabilities(detached_NV, temperature=temperature), drawn_N)
    return (ours_N - drawn_from_N).exp().clamp(max=clip)


def chosen(log_probs_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Gives the log-probability (N,) of one token at every position."""
    return log_probs_NV.gather(-1, tokens_N[:, None])[:, 0]


def counted(batch: Responses, *, skip: int) -> Tensor:
    """Gives 1 for the positions (N,) that count and 0 for the first `skip` of every response."""
    counted_N = torch.ones(len(batch.targets))
    for rows in batch.rows():
        counted_N[rows][:skip] = 0
    return counted_N


def descend(student_NV: Tensor, loss: Callable[[slice, Tensor], Tensor], *, count: float) -> float:
    """Adds the gradient of the sum of losses over `count` to the student's parameters and gives the value."""
    value, gradient_NV = piecewise_gradient(student_NV, loss, positions=POSITIONS_AT_A_TIME, count=count)
    torch.autograd.backward(student_NV, gradient_NV)
    return float(value)


def _parameters(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return list(model.parameters())
