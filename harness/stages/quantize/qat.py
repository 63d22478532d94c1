"""QAT as torchao does it: fake-quantized layers are trained on text, then converted.

torchao swaps every linear layer for one that rounds its weight (and its inputs) in each forward pass, with a grid that
follows the weights as they are trained, and passes gradients straight through. After training the layers are converted:
the same grid, now with integer codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import REQUIREMENTS
from harness.stages.quantize.aware import Aim, AwareRecipe, Rounding, train_rounded
from harness.stages.quantize.recipe import Scheme
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from harness.stages.quantize.handing import Packing
    from harness.stages.quantize.recipe import Assignment
    from harness.stages.quantize.straight_through import Parameters


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeQat(AwareRecipe):
    """Trains with torchao's fake-quantized linear layers on text, converts them, and packs the codes.

    Does:   torchao's `prepare` for every linear layer: symmetric integers in `bits` with a scale of max|w| over half
            the range for each `group` columns (null: a row), taken anew at every step; with `activations` inputs are
            rounded to 8 bits, asymmetric, by token. Trains all weights on the cross-entropy of `tokens` of the corpus
            (with `data_free`: of text that the model draws itself) by the training loop of all stages here, so a killed
            run continues to the same bits. Then torchao's `convert`. Codes and scales of weights alone are packed by
            compressed-tensors (pack-quantized); with `activations` torchao writes them in its own layout.
    Needs:  torchao and llm-compressor's packer; a corpus; about 24 bytes of memory a parameter, the reference's
            included; groups that divide the columns of every layer.
    Why:    the quantization-aware training that most people use, and the control for `quantize.qad`.
    Known:  torchao's own layout keeps a byte for every code, whatever it stands for, so where it can be avoided it is.
            With `activations` it cannot: in bfloat16 compressed-tensors rounds asymmetric inputs otherwise than
            torchao trained with (logits of a tiny model .04 of their spread apart). Scales are rounded to the stored
            type: for float32 models the grid is exactly that of training, for bfloat16 ones a weight may move by one
            rounding. Not every configuration of torchao trains on a CPU: Int8WeightOnly is none that QAT knows (`bits:
            8` is IntxWeightOnly), Int4WeightOnly, FP8 with activations and NVFP4 convert or multiply with kernels that
            CPUs lack (see `quantize.qad` for NVFP4). QAT needs a control: the float model fine-tuned the same way
            drifts too. The runtime multiplies floats, so the outcome is `emulated`.
    Source: torchao 0.18, `QATConfig` with `IntxWeightOnlyConfig` or `Int8DynamicActivationIntxWeightConfig`;
            LLM-QAT, arXiv 2305.17888, for text of the model's own.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = (*REQUIREMENTS, "torchao")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group")

    bits: int = 4
    group: int | None = 128
    activations: bool = False
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and self.group < 2:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 2, or null for a whole row")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        weights = integers(self.bits, group=self.group, symmetric=True)
        return {**weights, "input_activations": {}} if self.activations else weights

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        assignment = assign(self, read_architecture(source.path))
        by_torchao = Rounding(
            stored_dtype(source.path),
            begin=partial(_prepare, assignment),
            end=partial(_convert, assignment, stored=stored_dtype(source.path)),
        )
        with reproducible(context):
            train_rounded(self, source, out, how=(by_torchao, Aim(source, follows=False)), context=context)


def _prepare(assignment: Assignment, model: PreTrainedModel) -> None:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    for scheme, layers in assignment.schemes:
        chosen = frozenset(layers)
        quantize_(
            model, QATConfig(_base(scheme), step="prepare"), filter_fn=lambda _, name, chosen=chosen: name in chosen
        )


def _convert(assignment: Assignment, model: PreTrainedModel, *, stored: torch.dtype) -> Packing:
    """Converts the layers, and leaves in their place plain ones with the weights that the codes stand for."""
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    from harness.stages.quantize.handing import Handed

    tensors: dict[str, Any] = {}
    for scheme, layers in assignment.schemes:
        quantize_(model, QATConfig(_base(scheme), step="convert"), filter_fn=partial(_is_among, frozenset(layers)))
        for layer in layers:
            module: Any = model.get_submodule(layer)
            tensors[layer] = module.weight.detach().to(dtype=stored)
            module.weight = torch.nn.Parameter(tensors[layer].dequantize(), requires_grad=False)
    parameters = {layer: {"weight_scale": tensor.scale} for layer, tensor in tensors.items()}
    if any("input_activations" in scheme for scheme, _ in assignment.schemes):
        return Converted(assignment, parameters, tensors)
    assert not any(tensor.zero_point.any() for tensor in tensors.values()), "symmetric integers have no zero point"
    return Handed(assignment, parameters)


@dataclass(frozen=True)
class Converted:
    """Packing by torchao itself: its tensors in the place of weights, which round the layer's inputs too."""

    assignment: Assignment
    parameters: Mapping[str, Parameters]
    tensors: Mapping[str, Any]

    def settle(self, model: PreTrainedModel) -> None:
        """Puts the tensors in their places."""
        import torch

        for layer, tensor in self.tensors.items():
            module: Any = model.get_submodule(layer)
            module.weight = torch.nn.Parameter(tensor, requires_grad=False)

    def save(self, model: PreTrainedModel, trained: Artifact, out: Path, *, context: StageContext) -> None:
        """Saves the model in memory."""
        from harness.stages.quantize._torchao_tensors import Done, write

        del trained
        if any(scheme["weights"]["num_bits"] < 8 for scheme, _ in self.assignment.schemes):
            context.report.labels.append("torchao stores codes of fewer bits in 8 bits each")
        configs = [(_base(scheme), layers) for scheme, layers in self.assignment.schemes]
        write(model, out, Done(configs, self.assignment.kept))


def _is_among(layers: frozenset[str], _: nn.Module, name: str) -> bool:
    return name in layers


def _base(scheme: Scheme) -> Any:
    """Gives torchao's configuration for a scheme."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerAxis, PerGroup

    said = scheme["weights"]
    dtype = {bits: getattr(torch, f"int{bits}") for bits in BITS}[said["num_bits"]]
    share = PerGroup(said["group_size"]) if said["group_size"] else PerAxis(0)
    if "input_activations" in scheme:
        return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=share)
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=share)
