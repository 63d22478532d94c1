"""Training checkpoints: one safetensors file that is either whole or not there.

It holds the float32 weights, both moments of AdamW, the random state and the loss of every step so far; the step itself
follows from the losses. The order of data and the learning rate are functions of the step, so nothing else is needed to
continue as if nothing had happened. Nothing is pickled.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    file: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Writes aside and renames, so that a kill at any moment leaves the previous checkpoint."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64), "random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    aside = file.with_suffix(".partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)
    os.replace(aside, file)


def load_checkpoint(file: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Puts everything back in place and gives the losses so far; an empty list when there is no checkpoint."""
    if not file.exists():
        return []
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
                "step": tensors[f"step.{name}"].to(parameter.device),
            }
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    losses: list[float] = tensors["losses"].tolist()
    return losses
