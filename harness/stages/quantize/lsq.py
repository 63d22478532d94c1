"""LSQ: how far apart the grid's points are is trained together with the weights.

Rounding to the nearest point of a grid that spans all weights spends most points on a few large weights. LSQ starts
with a step from the weights' mean size and lets the loss say whether large weights should be cut (a smaller step) or
small ones be rounded away (a larger one).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS
from harness.stages.quantize.aware import Aim, AwareRecipe, Rounding, train_rounded
from harness.stages.quantize.recipe import Scheme
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.stages.quantize.handing import Packing
    from harness.stages.quantize.recipe import Assignment


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeLsq(AwareRecipe):
    """Trains weights and the steps of their grid together on text, and packs the codes with the learned steps.

    Does:   weights are clamp(round(w / s), -2^(bits-1), 2^(bits-1) - 1) * s with a step s for each `group` columns of a
            row (null: for a row), starting at 2 mean|w| / sqrt(Qp) with Qp = 2^(bits-1) - 1. The gradient goes to a
            weight where it is not cut; to the step goes round(w / s) - w / s, or the last code where it is cut, times
            1 / sqrt(N Qp) for N weights that share it. All weights are trained, on the cross-entropy of `tokens` of the
            corpus (with `data_free`: of text that the model draws itself). A killed run continues to the same bits.
            Packed by compressed-tensors (pack-quantized) with those very steps.
    Needs:  llm-compressor's packer; a corpus; about 24 bytes of memory a parameter, the reference's included; groups
            that divide the columns of every layer.
    Why:    the standard learned-step baseline for quantization-aware training: the loss decides what is cut off.
    Known:  weights only: the paper learns steps for activations too. The paper has one step a layer; kernels of today
            want one a row or a group. It descends with momentum, where the gradient's factor sets how fast a step
            moves; AdamW forgets such factors, so what is trained is the step in units of its weights' root mean square,
            which restores what the factor is for. Steps are used in training as they will be stored (bfloat16 models
            have bfloat16 steps). The paper's start is made for long training: on a tiny model in groups of 32, KL to
            the reference after 32 steps went from 1.96 to 1.15 at 2 bits (`quantize.qat`: 2.02 to 1.17), and from .68
            to .33 at 3 (.39 to .22). Cross-entropy pulls a model away from what it was: compare `heldout_kl_after` with
            `quantize.qad`, and fine-tune the float model the same way as a control. transformers unpacks the weights
            when it loads them, so there the outcome is `emulated`.
    Source: LSQ, arXiv 1902.08153, equations 1 to 5, sections 2.1 and 2.2. Own loop and own quantizer: no maintained
            library on this stack does. torchao 0.18 has a prototype (`range_learning`) with the same gradient, without
            the paper's start and factor; nvidia-modelopt 0.47 learns NVFP4's group scales alone, and the kernels for
            those need CUDA. torchao's gradient is the oracle of a test.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group")

    bits: int = 4
    group: int | None = 128
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=True)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        learned = learned_steps(assign(self, read_architecture(source.path)), stored=stored_dtype(source.path))
        with reproducible(context):
            train_rounded(self, source, out, how=(learned, Aim(source, follows=False)), context=context)


def learned_steps(assignment: Assignment, *, stored: torch.dtype) -> Rounding:
    """Gives the rounding whose steps are trained."""
    from torch import nn

    from harness.stages.quantize.handing import Handed
    from harness.stages.quantize.straight_through import LearnedStep, round_weights, settle_weights

    def begin(model: PreTrainedModel) -> None:
        roundings: dict[str, nn.Module] = {}
        for scheme, layers in assignment.schemes:
            bits, group = scheme["weights"]["num_bits"], scheme["weights"]["group_size"]
            for layer in layers:
                weight_RC = model.get_parameter(f"{layer}.weight")
                roundings[layer] = LearnedStep(weight_RC, bits=bits, group=group, stored=stored)
        round_weights(model, roundings)

    def end(model: PreTrainedModel) -> Packing:
        return Handed(assignment, settle_weights(model, assignment.layers))

    return Rounding(stored, begin, end)
