"""Training checkpoints: one safetensors file that is either whole or not there.

It holds every parameter of the module, the optimizer's moments of those that are trained, the random state and the loss
of every step so far; the step itself follows from the losses. The order of data and the learning rate are functions of
the step, so nothing else is needed to continue as if nothing had happened. Nothing is pickled.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.training.optimizers import Optimizers


def save_checkpoint(file: Path, *, model: torch.nn.Module, optimizers: Optimizers, losses: list[float]) -> None:
    """Writes aside and renames, so that a kill at any moment leaves the previous checkpoint."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64), "random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        if optimizer := optimizers.of(parameter):
            for moment, value in optimizer.state[parameter].items():
                tensors[f"moment.{moment}.{name}"] = value
    aside = file.with_suffix(".partial")
    save_file(
        {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, aside
    )
    os.replace(aside, file)


def load_checkpoint(file: Path, *, model: torch.nn.Module, optimizers: Optimizers) -> list[float]:
    """Puts everything back in place and gives the losses so far; an empty list when there is no checkpoint."""
    if not file.exists():
        return []
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            if optimizer := optimizers.of(parameter):
                optimizer.state[parameter] = _moments(tensors, name, on=parameter.device)
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    losses: list[float] = tensors["losses"].tolist()
    return losses


def _moments(tensors: dict[str, Tensor], name: str, *, on: torch.device) -> dict[str, Tensor]:
    """Gives an optimizer's state of one parameter by the names it has there."""
    prefix, suffix = "moment.", f".{name}"
    return {
        key.removeprefix(prefix).removesuffix(suffix): value.to(on)
        for key, value in tensors.items()
        if key.startswith(prefix) and key.removeprefix(prefix).partition(".")[2] == name
    }
