"""The training loop: whatever gives a gradient is followed downhill, and a killed run goes on where it was.

A trainer brings a module and a function that adds the gradient of one step's loss to the module's parameters. The loop
owns the optimizer, the learning rate, the checkpoints and the progress. The learning rate is a function of the step,
and so must the data be; random numbers may come from torch's global generator, whose state is in the checkpoint. A run
that was killed then continues to the very same bits on the same machine and number of threads.

Gradients are clipped to a norm of 1; linear warm-up, cosine to zero. No weight decay by default: a short repair should
not pull weights to zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from harness.errors import ModelError
from harness.interfaces import StageContext
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.optimizers import Optimizers
from harness.training.pace import Pace

CLIP_NORM = 1.0
CHECKPOINT = "checkpoint.safetensors"

Backward = Callable[[int], float]
"""Adds the gradient of the loss of a step (counted from 0) to the trained parameters and gives the loss."""


def train(module: torch.nn.Module, backward: Backward, *, pace: Pace, context: StageContext) -> list[float]:
    """Trains the parameters of `module` that require a gradient, in place; gives the loss of every step.

    Everything that must survive a kill is a parameter of `module`: a frozen copy that follows the student too.
    Continues from the checkpoint in the context's scratch folder if there is one. Raises ModelError when a loss or a
    gradient is not finite.
    """
    file, optimizers = context.scratch / CHECKPOINT, Optimizers(module, pace=pace)
    losses = load_checkpoint(file, model=module, optimizers=optimizers)
    done, started = len(losses), time.perf_counter()
    module.train()
    for step in range(done, pace.steps):
        losses.append(_step(optimizers, backward, step, rate=pace.rate(step)))
        rate = pace.tokens * (step + 1 - done) / (time.perf_counter() - started)
        left_s = pace.tokens * (pace.steps - step - 1) / rate
        message = f"step {step + 1} of {pace.steps}, loss {losses[-1]:.4f}, {rate:.0f} tokens/s, {left_s:.0f} s left"
        context.progress((step + 1) / pace.steps, message)
        if pace.checkpoint_every and (step + 1) % pace.checkpoint_every == 0 and step + 1 < pace.steps:
            save_checkpoint(file, model=module, optimizers=optimizers, losses=losses)
    module.eval()
    return losses


def _step(optimizers: Optimizers, backward: Backward, step: int, *, rate: float) -> float:
    loss = backward(step)
    norm = torch.nn.utils.clip_grad_norm_(optimizers.trained, CLIP_NORM)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ModelError(f"training diverged: loss {loss}, gradient norm {float(norm)}; lower learning_rate")
    optimizers.step(rate=rate)
    return loss
