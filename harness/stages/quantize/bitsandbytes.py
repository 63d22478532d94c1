"""bitsandbytes: weights on tables of 16 values (NF4, FP4), or LLM.int8 with its outliers spared; no text is needed.

NF4 takes its 16 values from the quantiles of a normal distribution, so that each is used about equally often by weights
that are normal, as those of trained models nearly are. FP4 takes them from a tiny float with three exponents. LLM.int8
rounds weights and activations to 8 bits, except for the few columns of an activation that are far larger than the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize.proof.layout_bitsandbytes import BLOCK
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.stages.quantize.proof.architecture import Architecture

KINDS = ("nf4", "fp4", "int8")
ROWS = 32
"""What the rows of a matrix must be a multiple of for the 4-bit kernel of processors with AVX512-BF16."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeBitsandbytes(QuantizationRecipe):
    """Rounds the linear weights to NF4, FP4 or int8 by bitsandbytes and packs them.

    Does:   nf4, fp4: divides every 64 weights of a row by the largest magnitude among them and takes the nearest of 16
            values; with `double_quant` these scales lose their mean and become 8-bit numbers, 256 of them to a float32.
            int8: divides every row by its largest magnitude, over 127; when the model runs, every token's activations
            are rounded the same way, but columns in which one reaches `outlier_threshold` are multiplied in 16 bits (0:
            no column is).
    Needs:  bitsandbytes, accelerate; no text. For 4 bits columns that 64 divides and, on processors with AVX512-BF16,
            rows that 32 divides. The model is loaded in bfloat16, whatever it is stored in, because NF4 written from
            float32 reads back as another model. `overrides` can only keep layers.
    Why:    the 4 bits in which most adapters are trained (QLoRA), and the 8 bits that first kept large models whole.
    Known:  4.127 bits a weight with `double_quant` and 4.5 without, and 150 or 1260 bytes a matrix for its tables. The
            runtime keeps the weights packed (Linear4bit, Linear8bitLt). With AVX512-BF16 a kernel reads them so and
            rounds the 4-bit scales to 8 bits of fraction; on other processors 4-bit weights are written out in floats
            at every pass, with the scales as they are, so there the outcome is `emulated` and the numbers differ a
            little. A 4-bit model that has computed cannot be saved: the library writes other scales and spoils the
            model in memory; the stage saves before it looks. int8 rounds weights and inputs to float16 on the way.
            Where the package `kernels` is installed, bitsandbytes asks the hub for a kernel when it is imported.
            Nothing is drawn, so the seed changes nothing.
    Source: QLoRA, arXiv 2305.14314, section 3; LLM.int8, arXiv 2208.07339; bitsandbytes 0.50.2 through transformers'
            `BitsAndBytesConfig`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("bitsandbytes", "accelerate", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False

    kind: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quant: bool = True
    outlier_threshold: float = 6.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.kind == "int8" and not self.double_quant:
            raise ValueError("double_quant is false and kind is int8; allowed: false for nf4 and fp4, which have it")
        if self.kind != "int8" and self.outlier_threshold != 6.0:
            raise ValueError(f"outlier_threshold is given and kind is {self.kind}; allowed: for int8 alone")
        if not 0 <= self.outlier_threshold < float("inf"):
            raise ValueError(
                f"outlier_threshold is {self.outlier_threshold!r}; allowed: a number from 0, where 0 is off"
            )
        refuse(self.problems())

    @property
    def calibrates(self) -> bool:
        return False

    @property
    def scheme(self) -> Scheme:
        return {"weights": {"type": self.kind, "group_size": None if self.kind == "int8" else BLOCK}}

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.runtimes._hf_bitsandbytes import hush
        from harness.stages.hf_folder import load_model, reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.proof.packing import write_packed
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        architecture = read_architecture(source.path)
        assignment = assign(self, architecture)
        stored = stored_dtype(source.path)
        if stored is not torch.bfloat16:
            context.report.labels.append(f"rounded from {str(stored)[6:]} to bfloat16 before quantizing")
        with reproducible(context):
            context.progress(None, "read")
            # transformers quantizes while it reads; this is who looks at what is read.
            load_model(source, dtype=torch.bfloat16, hardware=context.hardware)
            context.progress(None, f"quantize {len(assignment.layers)} layers")
            model = self._quantized(source, assignment, architecture, context=context)
            # Before anything is computed: afterwards the library would save something else.
            model.save_pretrained(out)
            hush()
            write_packed(model, out, lambda: None, source=source, context=context)

    def _quantized(
        self, source: Artifact, assignment: Assignment, architecture: Architecture, *, context: StageContext
    ) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        device = context.hardware.device
        if self.kind != "int8" and device == "cpu":
            _require_rows(assignment, architecture)
        config = BitsAndBytesConfig(
            load_in_8bit=self.kind == "int8",
            load_in_4bit=self.kind != "int8",
            llm_int8_threshold=float(self.outlier_threshold),
            llm_int8_skip_modules=list(assignment.kept),
            bnb_4bit_quant_type=self.kind if self.kind != "int8" else "nf4",
            bnb_4bit_use_double_quant=self.kind != "int8" and self.double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=torch.bfloat16,
            quantization_config=config,
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
        )
        _require_assigned(model, assignment)
        return model.eval()


def _require_rows(assignment: Assignment, architecture: Architecture) -> None:
    """Raises Unsupported when the kernel of this processor cannot take a matrix."""
    from bitsandbytes.functional import has_avx512bf16

    odd = [layer for layer in assignment.layers if architecture.linears[layer][0] % ROWS]
    if odd and has_avx512bf16():
        raise Unsupported(
            f"{odd[0]} has {architecture.linears[odd[0]][0]} rows, and on this processor bitsandbytes multiplies by"
            f" matrices whose rows {ROWS} divides",
            remedy="keep such layers with `overrides`, or use kind int8",
        )


def _require_assigned(model: Any, assignment: Assignment) -> None:
    """Raises ModelError unless exactly the layers that were asked for are bitsandbytes' own."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    found = {name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))}
    if wrong := sorted(found ^ set(assignment.layers)):
        raise ModelError(f"bitsandbytes was to quantize {len(assignment.layers)} layers and got {wrong[0]} wrong")
