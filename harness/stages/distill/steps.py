"""One step of learning from blocks of text: from a teacher's distributions, from the text itself, or from both.

Shapes: N blocks or positions, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.stages.distill.losses import cross_entropy, piecewise_gradient
from harness.stages.distill.student import POSITIONS_AT_A_TIME, Reader, next_tokens

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks
    from harness.stages.distill.soft import Soft


def learning(
    student: Reader, blocks_NT: Blocks, soft: Soft | None, *, batch: int, weights: tuple[float, float]
) -> Callable[[int], float]:
    """Gives what a step does: adds the gradient of soft_weight * soft + hard_weight * cross-entropy, and gives that.

    A step reads the next `batch` blocks. `weights` are the soft and the hard one; without `soft` the first is unused.
    """
    soft_weight, hard_weight = weights

    def backward(step: int) -> float:
        start, end = step * batch, (step + 1) * batch
        tokens_BT = torch.from_numpy(blocks_NT[start:end]).to(student.model.device)
        labels_N = next_tokens(tokens_BT)
        divergence = soft(start, end) if soft else None
        student_NV = student.logits(tokens_BT)

        def loss(rows: slice, piece_NV: Tensor) -> Tensor:
            loss_N = soft_weight * divergence(rows, piece_NV) if divergence else piece_NV.new_zeros(len(piece_NV))
            if hard_weight:
                loss_N = loss_N + hard_weight * cross_entropy(piece_NV, labels_N[rows])
            return loss_N

        value, gradient_NV = piecewise_gradient(student_NV, loss, positions=POSITIONS_AT_A_TIME)
        torch.autograd.backward(student_NV, gradient_NV)
        return float(value)

    return backward
