"""Distillation losses as pure functions of logits, and their gradient in pieces that fit into memory.

Hinton's loss compares teacher and student at temperature t and multiplies by t^2, so that the size of the soft gradient
does not depend on t:

    kl(n) = t^2 * sum_v p_T(v) (log p_T(v) - log p_S(v)),     p = softmax(logits / t)

This is the forward direction, KL(teacher || student): the student is punished wherever the teacher has mass and it has
none. Source: Hinton et al., arXiv 1503.02531, section 2; equal to `generalized_jsd_loss` of TRL 1.16 at beta = 0 (for
t = 1) and to `LogitsDistillationLoss` of ModelOpt 0.47 summed over positions.

Vocabularies are large: for 1024 positions and 49,152 entries one float32 copy is 200 MB and a naive loss holds five. So
the gradient is taken over some positions at a time and only the logits' own type is kept whole.

Shapes: N positions, V vocabulary. Logits may be any float type; losses are float32, in nats a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Marks a position without a next token; the `ignore_index` of torch.
NO_LABEL = -100


@dataclass(frozen=True)
class LossWeights:
    """`kd` times the soft loss at `temperature` plus `ce` times the cross-entropy to the text itself.

    Both are named because papers put alpha on either side.
    """

    kd: float = 1.0
    ce: float = 0.0
    temperature: float = 1.0


def forward_kl(teacher_NV: Tensor, student_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Gives t^2 * KL(teacher || student) for every position (N,)."""
    log_teacher_NV = functional.log_softmax(teacher_NV.float() / temperature, dim=-1)
    log_student_NV = functional.log_softmax(student_NV.float() / temperature, dim=-1)
    kl_NV = functional.kl_div(log_student_NV, log_teacher_NV, reduction="none", log_target=True)
    return kl_NV.sum(dim=-1) * temperature**2


def distillation_loss(teacher_NV: Tensor, student_NV: Tensor, *, labels_N: Tensor, weights: LossWeights) -> Tensor:
    """Gives the weighted loss of every position (N,); a label of NO_LABEL adds no cross-entropy."""
    loss_N = weights.kd * forward_kl(teacher_NV, student_NV, temperature=weights.temperature)
    if weights.ce:
        entropy_N = functional.cross_entropy(student_NV.float(), labels_N, ignore_index=NO_LABEL, reduction="none")
        loss_N = loss_N + weights.ce * entropy_N
    return loss_N


def loss_and_gradient(
    teacher_NV: Tensor, student_NV: Tensor, *, labels_N: Tensor, weights: LossWeights, positions: int = 128
) -> tuple[Tensor, Tensor]:
    """Gives the mean loss over positions and its gradient with respect to the student's logits (N, V) in their type.

    Works on `positions` positions at a time; the result does not depend on it but for rounding of the sum.
    """
    gradient_NV = torch.empty_like(student_NV)
    total = torch.zeros((), device=student_NV.device)
    for start in range(0, len(student_NV), positions):
        rows = slice(start, start + positions)
        piece = student_NV[rows].detach().float().requires_grad_()
        loss = distillation_loss(teacher_NV[rows], piece, labels_N=labels_N[rows], weights=weights).sum()
        (slope,) = torch.autograd.grad(loss / len(student_NV), piece)
        gradient_NV[rows] = slope.to(gradient_NV.dtype)
        total += loss.detach()
    return total / len(student_NV), gradient_NV


def next_tokens(tokens_BT: Tensor) -> Tensor:
    """Gives for every position the token that follows it (B * T,), NO_LABEL at the end of a block."""
    labels_BT = torch.full_like(tokens_BT, NO_LABEL)
    labels_BT[:, :-1] = tokens_BT[:, 1:]
    return labels_BT.flatten()
