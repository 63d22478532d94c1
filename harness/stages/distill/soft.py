"""The soft half of distillation: how far the student is from the teacher, with the teacher in memory or on disk.

Shapes: N blocks, T tokens, n positions of a slice, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.interfaces import Artifact
from harness.sources.corpus import Split
from harness.stages.capture.targets import Targets
from harness.stages.distill.losses import Divergence, TopK, log_probabilities
from harness.stages.distill.student import POSITIONS_AT_A_TIME, Reader

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks

PositionLoss = Callable[[slice, Tensor], Tensor]
"""Gives the loss of the positions of a slice from the student's logits at them (n, V)."""

Soft = Callable[[int, int], PositionLoss]
"""Gives the soft loss of the blocks from one number up to another; positions are counted through those blocks."""


def from_model(teacher: Reader, blocks_NT: Blocks, *, divergence: Divergence, temperature: float) -> Soft:
    """Gives t^2 * divergence at temperature t to a teacher that reads the blocks along with the student."""

    def soft(start: int, end: int) -> PositionLoss:
        with torch.no_grad():
            teacher_NV = teacher.logits(torch.from_numpy(blocks_NT[start:end]).to(teacher.model.device))

        def loss(rows: slice, piece_NV: Tensor) -> Tensor:
            log_teacher_NV = log_probabilities(teacher_NV[rows], temperature=temperature)
            return divergence(log_teacher_NV, log_probabilities(piece_NV, temperature=temperature)) * temperature**2

        return loss

    return soft


def from_targets(
    artifact: Artifact, split: Split, blocks_NT: Blocks, *, divergence: Divergence, temperature: float
) -> Soft:
    """Gives the same to a teacher's stored predictions, on its likeliest tokens and the tail.

    Raises SpecError when they were stored for other tokens.
    """
    targets = Targets.read(artifact, split)
    targets.require(blocks_NT)

    def soft(start: int, end: int) -> PositionLoss:
        # numpy's unsigned types have no torch counterpart to gather with.
        ids_NK = torch.from_numpy(targets.ids_NTK[start:end].astype("int64")).flatten(0, 1)
        log_probs_NK = torch.from_numpy(targets.log_probs_NTK[start:end].copy()).flatten(0, 1)
        tails_N = torch.from_numpy(targets.tails_NT[start:end].copy()).flatten()

        def loss(rows: slice, piece_NV: Tensor) -> Tensor:
            kept = TopK(*(part[rows].to(piece_NV.device) for part in (ids_NK, log_probs_NK, tails_N)))
            log_student_NK = kept.of_student(piece_NV, temperature=temperature)
            return divergence(kept.entries(), log_student_NK) * temperature**2

        return loss

    return soft


def mean_divergence(student: Reader, blocks_NT: Blocks, soft: Soft) -> float:
    """Gives the soft loss in nats a token, averaged over every position of the blocks."""
    total = 0.0
    with torch.no_grad():
        for number, block_T in enumerate(blocks_NT):
            loss = soft(number, number + 1)
            student_NV = student.logits(torch.from_numpy(block_T)[None].to(student.model.device))
            for start in range(0, len(student_NV), POSITIONS_AT_A_TIME):
                rows = slice(start, start + POSITIONS_AT_A_TIME)
                total += float(loss(rows, student_NV[rows]).double().sum())
    return total / blocks_NT.size
