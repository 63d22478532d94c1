"""How a training run is paced: its steps, its learning rate as a function of the step, its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class Pace:
    """How a run is paced.

    `tokens` are read a step (for the progress), `learning_rate` is the peak, `warmup` the fraction of steps that rise
    to it, `checkpoint_every` a number of steps, `optimizer` one of OPTIMIZERS (see `optimizers`).
    """

    steps: int
    tokens: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 0.0
    checkpoint_every: int | None = 100
    optimizer: str = "adamw"

    def rate(self, step: int) -> float:
        """Gives the learning rate of a step counted from 0: linear up, then half a cosine down towards zero."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))
