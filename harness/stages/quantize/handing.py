"""How a model that was trained on a grid is packed on that very grid.

Calibration would look at the trained weights and choose scales of its own, and the weights would be rounded a second
time, onto another grid. So scales are handed over: the trained model, its weights on the grid, is written to scratch as
any model is, opened, given the scales it was trained with in the place where llm-compressor puts those it finds, and
packed by the packer that llm-compressor packs with. The codes are then those of training: a weight that is a code times
a scale, rounded to the stored type, divided by that scale in float32, is within half a step of its code and no other.

What is held against the files is the trained model in memory, computing through its own rounding.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from harness.interfaces import Artifact, StageContext
from harness.stages.hf_folder import copy_companions, load_model
from harness.stages.quantize._one_shot import groups_of
from harness.stages.quantize.proof.packing import write_packed
from harness.stages.quantize.recipe import Assignment
from harness.stages.quantize.straight_through import Parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED = "trained"


class Packing(Protocol):
    """How a trained model becomes files. `assignment` says which layer has which scheme."""

    @property
    def assignment(self) -> Assignment: ...

    def settle(self, model: PreTrainedModel) -> None:
        """Lets the model in memory, whose weights lie on their grid, compute as the files will."""

    def save(self, model: PreTrainedModel, trained: Artifact, out: Path, *, context: StageContext) -> None:
        """Packs into `out`; `trained` is a folder with the same weights, not packed."""


@dataclass(frozen=True)
class Handed:
    """Packing by compressed-tensors with given scales: what is stored beside the codes, by layer."""

    assignment: Assignment
    parameters: Mapping[str, Parameters]

    def settle(self, model: PreTrainedModel) -> None:
        """Does nothing: weights on the grid are what the files decode to."""

    def save(self, model: PreTrainedModel, trained: Artifact, out: Path, *, context: StageContext) -> None:
        """Packs what lies in `trained` with these scales."""
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

        groups, ignore = groups_of(self.assignment)
        config = QuantizationConfig(
            config_groups=groups, ignore=ignore, quantization_status=QuantizationStatus.FROZEN, format="dense"
        )
        opened: Any = load_model(trained, dtype=model.dtype, hardware=context.hardware)
        apply_quantization_config(opened, config, show_progress=False)
        with torch.no_grad():
            for layer, parameters in self.parameters.items():
                module = opened.get_submodule(layer)
                # In a shorter type a code of 8 bits could be lost in the division.
                module.weight.data = module.weight.data.float()
                for name, value in parameters.items():
                    place = module.get_parameter(name)
                    place.copy_(value.reshape(place.shape))
        packer = ModelCompressor.from_pretrained_model(opened)
        packer.compress_model(opened)
        opened.save_pretrained(out)
        packer.update_config(str(out))


def write_trained(
    model: PreTrainedModel, out: Path, packing: Packing, *, source: Artifact, context: StageContext
) -> None:
    """Packs a trained model, whose weights lie on their grid in the type to store, into `out`, and proves it.

    Raises what `write_packed` raises.
    """
    folder = context.scratch / TRAINED
    shutil.rmtree(folder, ignore_errors=True)
    cast("Any", model).save_pretrained(folder)
    copy_companions(source.path, folder)
    trained = replace(source, path=folder)
    packing.settle(model)
    save = partial(packing.save, model, trained, out, context=context)
    write_packed(model, out, save, source=trained, context=context)
