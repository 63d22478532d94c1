"""QAD: a quantized model is trained to answer as it did before it was quantized.

Training a quantized model on text teaches it that text, and what it had learned elsewhere (by reinforcement, from data
that nobody has any more) is lost on the way: the cross-entropy is back, the model is another one. QAD takes the model's
own distribution before quantization for its teacher, at every token, and nothing else. What is left to learn is what
rounding took away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.distill.recipe import refuse, teacher_need
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, calibrate_one_shot
from harness.stages.quantize.aware import Aim, AwareRecipe, Rounding, train_rounded
from harness.stages.quantize.recipe import Scheme
from harness.stages.quantize.schemes import BITS, fp4, int8_both, integers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from harness.stages.quantize.handing import Packing
    from harness.stages.quantize.recipe import Assignment
    from harness.stages.quantize.straight_through import Parameters

KINDS, SCALES, LOSSES = ("nvfp4", "int"), ("fixed", "following"), ("kl", "ce")


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeQad(AwareRecipe):
    """Trains the quantized model to its own distribution before quantization, and packs it on the grid of training.

    Does:   minimizes KL(reference || quantized model) at temperature 1 over every token of `tokens` tokens of the
            corpus (with `data_free`: of text that the model draws itself), or with `loss: ce` the cross-entropy, which
            is quantization-aware training and the control. Weights are rounded straight through: `nvfp4` (with
            `activations` inputs too, as in the paper) or `int` in `bits` by `group` (null: a scale a row; 8 bits with
            `activations`: inputs by token). All weights are trained, embedding and norms too. Scales are `fixed` at
            what max-calibration by llm-compressor finds, or `following`: those of nvfp4's groups, or of integers, are
            taken from the weights at every step. Packed by compressed-tensors on the grid of training. A killed run
            continues to the same bits.
    Needs:  llm-compressor; a corpus; a teacher with the same tokenizer, by default the very model that comes in
            (`teacher: {source: reference}` names the family's reference, for a model that was pruned before); about 24
            bytes of memory a parameter. nvfp4 stores bfloat16, and columns that 16 divides.
    Why:    recovers what NVFP4 costs models trained by reinforcement, where training on text makes it worse.
    Known:  published (Llama Nemotron Super V1): KL to the reference .311 after training on text, .004 after QAD, with
            equal cross-entropies; mean retention over 16 tasks 93.7 % rounded, 88.8 % QAT, 98.3 % QAD, in .3B to 6B
            tokens at 1e-6 to 1e-5. Fixed scales cut the weights that grow past them. The matrix-wide scale of nvfp4
            stays at its calibrated value in both modes, as in ModelOpt, whose group scales follow. Calibration of
            inputs reads the first 16,384 tokens at most. transformers unpacks weights and rounds inputs in bfloat16, so
            there the outcome is `emulated`.
    Source: QAD, arXiv 2601.20088. Own loop: nvidia-modelopt's QADTrainer (0.47) does the same on GPUs, but its NVFP4
            needs CUDA kernels, its state is pickled, a killed run is not promised to continue to the same bits, and the
            packed folders it exports load in transformers without an error and are wrong. So it does not fit here; it
            is the tool for models that need several GPUs.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group")

    kind: Literal["nvfp4", "int"] = "nvfp4"
    bits: int = 4
    group: int | None = 128
    activations: bool = False
    scales: Literal["fixed", "following"] = "fixed"
    loss: Literal["kl", "ce"] = "kl"
    teacher: Mapping[str, object] | None = None
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        named = (("kind", self.kind, KINDS), ("scales", self.scales, SCALES), ("loss", self.loss, LOSSES))
        found = [f"{key} is {value!r}; allowed: {', '.join(all_)}" for key, value, all_ in named if value not in all_]
        both = self.kind == "int" and self.activations
        checks = (
            (self.bits not in BITS, f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}"),
            (self.group is not None and self.group < 1, f"group is {self.group!r}; allowed: from 1, or null for a row"),
            (
                self.kind == "nvfp4" and (self.bits, self.group) != (4, 128),
                "bits and group are part of what nvfp4 is; allowed with it: neither",
            ),
            (
                both and (self.bits, self.group) != (8, None),
                f"activations with bits {self.bits!r}, group {self.group!r}; allowed: bits 8 and group null",
            ),
        )
        refuse([*found, *(message for is_wrong, message in checks if is_wrong), *self.problems()])
        if self.teacher is not None:
            teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        taught = () if self.teacher is None else (teacher_need(self.teacher),)
        return (*taught, *super().needs)

    @property
    def calibrates(self) -> bool:
        return self.kind == "nvfp4" and self.activations

    @property
    def scheme(self) -> Scheme:
        if self.kind == "nvfp4":
            return fp4("nvfp4", activations=self.activations)
        return int8_both() if self.activations else integers(self.bits, group=self.group, symmetric=True)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.hf_folder import reproducible, require_unpacked, stored_dtype

        require_unpacked(source)
        # llm-compressor packs NVFP4 from bfloat16 alone.
        stored = torch.bfloat16 if self.kind == "nvfp4" else stored_dtype(source.path)
        aim = Aim(source if self.teacher is None else context.artifacts["teacher"], follows=self.loss == "kl")
        with reproducible(context):
            calibrated = calibrate_one_shot(self.calibrator, source, dtype=stored, context=context)
            rounding = _straight_through(*calibrated, stored=stored, following=self.scales == "following")
            del calibrated
            train_rounded(self, source, out, how=(rounding, aim), context=context)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's plain rounding, whose scales are the ones to start with."""
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(config_groups=groups, ignore=ignore)]


def _straight_through(
    calibrated: PreTrainedModel, assignment: Assignment, *, stored: torch.dtype, following: bool
) -> Rounding:
    """Gives the rounding with the scales that calibration put beside the weights."""
    from harness.stages.quantize.handing import Handed
    from harness.stages.quantize.straight_through import round_inputs, round_weights, settle_weights

    weights: dict[str, nn.Module] = {}
    inputs: dict[str, Callable[[Tensor], Tensor]] = {}
    beside: dict[str, Parameters] = {}
    for scheme, layers in assignment.schemes:
        for layer in layers:
            module = calibrated.get_submodule(layer)
            weights[layer] = _weight_rounding(module, scheme, stored=stored, following=following)
            beside[layer] = {}
            if "input_activations" in scheme:
                inputs[layer], beside[layer] = _input_rounding(module, scheme)

    def begin(model: PreTrainedModel) -> None:
        round_weights(model, weights)
        round_inputs(model, inputs)

    def end(model: PreTrainedModel) -> Packing:
        settled = settle_weights(model, assignment.layers)
        return Handed(assignment, {layer: settled[layer] | beside[layer] for layer in settled})

    return Rounding(stored, begin, end)


def _weight_rounding(module: nn.Module, scheme: Scheme, *, stored: torch.dtype, following: bool) -> nn.Module:
    from harness.stages.quantize.straight_through import IntegerWeight, Nvfp4Weight

    said = scheme["weights"]
    scales_RG = None if following else module.get_parameter("weight_scale").detach().clone()
    if said["type"] == "float":
        return Nvfp4Weight(module.get_parameter("weight_global_scale").detach().clone(), scales_RG=scales_RG)
    return IntegerWeight(said["num_bits"], said.get("group_size"), stored=stored, steps_RG=scales_RG)


def _input_rounding(module: nn.Module, scheme: Scheme) -> tuple[Callable[[Tensor], Tensor], Parameters]:
    from harness.stages.quantize.straight_through import int8_inputs, nvfp4_inputs

    if scheme["input_activations"]["type"] == "int":
        return int8_inputs, {}
    scale = module.get_parameter("input_global_scale").detach().clone()
    return partial(nvfp4_inputs, global_scale=scale), {"input_global_scale": scale}
