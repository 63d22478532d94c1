"""The training loop of distillation: teacher and student read the same tokens, the student follows.

The student's weights stay float32 while the arithmetic is bfloat16 (autocast). The order of the data, the learning rate
and the loss are functions of the step and the seed, so a run that was killed continues from its checkpoint to the very
same bits on the same machine and number of threads.

Optimizer: AdamW with betas 0.9 and 0.95 and no weight decay (a short repair should not pull weights to zero), gradients
clipped to a norm of 1, linear warm-up, cosine to zero.

Shapes: N blocks, B blocks a step, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.interfaces import StageContext
from harness.stages.distill.checkpoint import load_checkpoint, save_checkpoint
from harness.stages.distill.losses import LossWeights, forward_kl, loss_and_gradient, next_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.0
CLIP_NORM = 1.0
POSITIONS_AT_A_TIME = 128


@dataclass(frozen=True)
class Schedule:
    """How a run is paced: blocks a step, peak rate, fraction of steps that warm up, steps between checkpoints."""

    batch: int
    learning_rate: float
    warmup: float
    checkpoint_every: int | None

    def rate(self, step: int, *, steps: int) -> float:
        """Gives the learning rate of a step counted from 0: linear up, then half a cosine down towards zero."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, which compute in bfloat16 when `autocast` is set."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    autocast: bool

    def logits(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the logits (B * T, V) of teacher and student; only the student's can be differentiated."""
        with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                teacher_BTV = self.teacher(tokens_BT, use_cache=False).logits
            student_BTV = self.student(tokens_BT, use_cache=False).logits
        return teacher_BTV.flatten(0, 1), student_BTV.flatten(0, 1)


def train(
    pair: Pair, *, blocks_NT: Blocks, schedule: Schedule, weights: LossWeights, context: StageContext
) -> list[float]:
    """Trains the student in place, once over the blocks in their order, and gives the mean loss of every step.

    Continues from the checkpoint in the context's scratch folder if there is one. Raises ModelError when a loss or a
    gradient is not finite.
    """
    steps, file = len(blocks_NT) // schedule.batch, context.scratch / "checkpoint.safetensors"
    optimizer = torch.optim.AdamW(pair.student.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    losses = load_checkpoint(file, model=pair.student, optimizer=optimizer)
    done, started = len(losses), time.perf_counter()
    pair.student.train()
    for step in range(done, steps):
        batch_BT = torch.from_numpy(blocks_NT[step * schedule.batch : (step + 1) * schedule.batch])
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, steps=steps)
        losses.append(_step(pair, optimizer, batch_BT.to(pair.student.device), weights))
        rate = batch_BT.numel() * (step + 1 - done) / (time.perf_counter() - started)
        left_s = batch_BT.numel() * (steps - step - 1) / rate
        message = f"step {step + 1} of {steps}, loss {losses[-1]:.4f}, {rate:.0f} tokens/s, {left_s:.0f} s left"
        context.progress((step + 1) / steps, message)
        if schedule.checkpoint_every and (step + 1) % schedule.checkpoint_every == 0 and step + 1 < steps:
            save_checkpoint(file, model=pair.student, optimizer=optimizer, losses=losses)
    pair.student.eval()
    return losses


def _step(pair: Pair, optimizer: torch.optim.Optimizer, tokens_BT: Tensor, weights: LossWeights) -> float:
    teacher_NV, student_NV = pair.logits(tokens_BT)
    loss, gradient_NV = loss_and_gradient(
        teacher_NV, student_NV, labels_N=next_tokens(tokens_BT), weights=weights, positions=POSITIONS_AT_A_TIME
    )
    torch.autograd.backward(student_NV, gradient_NV)
    norm = torch.nn.utils.clip_grad_norm_(pair.student.parameters(), CLIP_NORM)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ModelError(f"distillation diverged: loss {float(loss)}, gradient norm {float(norm)}; lower learning_rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss)


def mean_kl(pair: Pair, blocks_NT: Blocks) -> float:
    """Gives KL(teacher || student) in nats a token, averaged over every position of the blocks, at temperature 1."""
    total = 0.0
    with torch.no_grad():
        for block_T in blocks_NT:
            teacher_NV, student_NV = pair.logits(torch.from_numpy(block_T)[None].to(pair.student.device))
            for start in range(0, len(teacher_NV), POSITIONS_AT_A_TIME):
                rows = slice(start, start + POSITIONS_AT_A_TIME)
                total += float(forward_kl(teacher_NV[rows], student_NV[rows]).double().sum())
    return total / blocks_NT.size
