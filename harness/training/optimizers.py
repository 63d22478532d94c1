"""The optimizers a run may follow: AdamW for everything, or Muon for the matrices inside the layers.

AdamW repairs a trained model gently and is the default. A model that learns from nothing learns to copy from what it
has read with a fraction of the tokens under Muon, which replaces the momentum of a matrix by the nearest orthogonal
one, so that rare directions move as far as common ones. Embeddings, heads, norms and biases stay with AdamW.

Sources: Loshchilov and Hutter, arXiv 1711.05101 (AdamW); Jordan et al., "Muon", 2024, as `torch.optim.Muon` has it;
Liu et al., arXiv 2502.16982, for the factor that lets both share a learning rate (`match_rms_adamw`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from harness.training.pace import Pace

BETAS = (0.9, 0.95)
MOMENTUM = 0.95


class Optimizers:
    """One or two optimizers that step together at one learning rate."""

    def __init__(self, module: nn.Module, *, pace: Pace) -> None:
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        inner = _inner_matrices(module) if pace.optimizer == "muon" else []
        taken = {id(parameter) for parameter in inner}
        rest = [parameter for parameter in self.trained if id(parameter) not in taken]
        self.parts: list[torch.optim.Optimizer] = []
        if inner:
            self.parts.append(
                torch.optim.Muon(
                    inner, weight_decay=pace.weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
                )
            )
        if rest:
            self.parts.append(torch.optim.AdamW(rest, betas=BETAS, weight_decay=pace.weight_decay, fused=True))

    def step(self, *, rate: float) -> None:
        """Moves every trained parameter at a learning rate and forgets the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def of(self, parameter: nn.Parameter) -> torch.optim.Optimizer | None:
        """Gives the optimizer that moves a parameter; none when it is not trained."""
        for part in self.parts:
            if any(parameter is other for group in part.param_groups for other in group["params"]):
                return part
        return None


def _inner_matrices(module: nn.Module) -> Sequence[nn.Parameter]:
    """Gives the trained matrices that are neither an embedding nor an output head."""
    from transformers import PreTrainedModel

    outer = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    for part in module.modules():
        head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
        if head is not None:
            outer.add(id(head.weight))
    return [p for p in module.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outer]
